"""`python -m benchmarks.drop_muon.cost`: ours does what a program cut by hand does."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common import timing
from benchmarks.drop_muon import cost, steps
from benchmarks.models import cnn


class Seen:
    """What a run of the command built and compiled."""

    def __init__(self, monkeypatch):
        self.steps, self.programs = {}, []
        monkeypatch.setattr(cost, "steps", self.steps_of)
        compile_program = timing.compile_program

        def compiled(*args, **kwargs):
            self.programs.append(compile_program(*args, **kwargs))
            return self.programs[-1]

        monkeypatch.setattr(timing, "compile_program", compiled)

    def steps_of(self, task, every):
        self.steps = steps.steps(task, every)
        return self.steps

    def after(self, name):
        """Parameters and state after a step, by the program that was timed."""
        step = self.steps[name]
        program = self.programs[list(self.steps).index(name)]
        params, opt_state, loss = program.call(*timing.copied(step.state), *step.batch)
        return params, opt_state, loss


@pytest.mark.usefixtures("standard_promotion")  # Optax's schedules
def test_ours_is_the_program_cut_by_hand(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "IMAGE_SHAPE", (8, 8, 3))
    small = partial(steps.on_images, cnn, "small", cnn.scion_layers())
    model = steps.Model(small, batch_size=8, num_rounds=2)
    monkeypatch.setitem(cost.MODELS, "cnn", model)
    seen = Seen(monkeypatch)
    assert cost.main(["--model", "cnn", "--output", str(tmp_path)]) == 0
    (line,) = (tmp_path / "drop_cost.jsonl").read_text().splitlines()
    check_record(json.loads(line))
    out = capsys.readouterr().out
    for row in ("all (full)", "all (then zero)", "from conv1", "from head"):
        assert f"| {row} " in out
    assert (tmp_path / "drop_cost.png").read_bytes().startswith(b"\x89PNG")
    for cutoff in range(4):
        check_step(seen, cutoff)
    # Multiplying by 0 gives the same weights, if not the same momentum.
    assert_near(seen.after("then_zero")[0], seen.after("ours_3")[0])


def check_record(entry):
    assert entry["batch_size"] == 8
    assert [row["first_layer"] for row in entry["cutoffs"]] == cnn.LAYER_ORDER
    assert [row["num_active"] for row in entry["cutoffs"]] == [4, 3, 2, 1]
    for row in entry["cutoffs"]:
        shares = cost.shares(entry, row)
        assert 0.98 < shares["FLOPs"] < cost.BARS["FLOPs"], row["first_layer"]
        assert shares["memory"] < cost.BARS["memory"], row["first_layer"]
        assert row["ours"]["compile_time_s"] > 0
        assert row["ours"]["step_time_s"]["num_runs"] == 2
    flops = [row["ours"]["num_flops_per_step"] for row in entry["cutoffs"]]
    assert flops == sorted(flops, reverse=True)
    assert flops[-1] < 0.5 * entry["full"]["num_flops_per_step"]


def check_step(seen, cutoff):
    before = seen.steps[f"ours_{cutoff}"].state
    moved, moved_state, loss = seen.after(f"by_hand_{cutoff}")
    params, opt_state, our_loss = seen.after(f"ours_{cutoff}")
    np.testing.assert_allclose(our_loss, loss, rtol=1e-6)
    assert_near({name: params[name] for name in moved}, moved)
    frozen = cnn.LAYER_ORDER[:cutoff]
    for name in frozen:
        jax.tree.map(np.testing.assert_array_equal, params[name], before[0][name])
    for path, leaf in jax.tree.leaves_with_path(opt_state):
        if any(f"'{name}'" in jax.tree_util.keystr(path) for name in frozen):
            assert not bool(jnp.any(leaf)), path  # momentum is still M⁻¹ = 0
    assert any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(moved_state))


def assert_near(found, expected):
    """Two compilations may fuse, and so round, differently: some units of 2⁻²³.

    Newton–Schulz multiplies a difference by at most 3.4 a step, five times.
    """
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected
    )


def test_every_so_many_cutoffs():
    task = steps.Task(None, None, list("abcdef"), None, None)
    assert steps.cutoffs_of(task, 1) == [0, 1, 2, 3, 4, 5]
    assert steps.cutoffs_of(task, 2) == [0, 2, 4, 5]
    assert steps.cutoffs_of(task, 5) == [0, 5]


def test_misses_are_named():
    measured = {"num_flops_per_step": 100.0, "peak_memory_bytes": 1000}
    row = {
        "first_layer": "conv2",
        "by_hand": measured,
        "ours": {"num_flops_per_step": 101.0, "peak_memory_bytes": 1500},
        "time_of_by_hand": {"median": 1.0625},
    }
    entry = {"model": "cnn", "full": measured, "cutoffs": [row]}
    assert cost.misses(entry) == [
        "cnn from conv2: time 1.062, bar 1.05",
        "cnn from conv2: memory 1.500, bar 1.0001",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vgg"], "resnet18"),
        (["--rounds", "0"], "must be a positive integer"),
        (["--batch-size", "-1"], "must be a positive integer"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, refusal):
    assert message in refusal(cost.parse, arguments)
