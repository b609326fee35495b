"""Language models: runs of every optimizer, resuming, sweeps, costs, samples."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dropmuon_optax as dm
from benchmarks.common import text, workers
from benchmarks.language import (
    checkpoints,
    nanogpt,
    radii,
    report,
    steps,
    sweep,
    sweep_report,
    train,
)
from benchmarks.language import costs as lm_costs
from benchmarks.language import options as lm_options
from benchmarks.language.checkpoints import Store
from benchmarks.language.methods import OPTIMIZERS
from benchmarks.language.steps import accumulate
from benchmarks.models import nanogpt as gpt

ROOT = pathlib.Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
SHORT = [*("--preset", "nano", "--batch", "8"), *("--length", "16")]
SHORT += ["--validation-windows", "8"]

# Optax's Adam and schedules mix ints and floats.
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def readme(use_as_shakespeare):
    """The README of this repository in place of Shakespeare."""
    use_as_shakespeare(README)


def options(*arguments):
    return lm_options.parse([*SHORT, *arguments])


def run_main(tmp_path, *arguments):
    status = nanogpt.main(
        [*SHORT, "--sample", "4", "--output", str(tmp_path), *arguments]
    )
    lines = (tmp_path / "nanogpt.jsonl").read_text().splitlines()
    return status, json.loads(lines[-1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_runs(tmp_path, capsys, name):
    status, entry = run_main(
        tmp_path, "--optimizer", name, "--steps", "2", "--evaluations", "1"
    )
    assert status == 0
    assert [point["step"] for point in entry["history"]] == [0, 2]
    assert entry["optimizer"] == name
    assert entry["num_devices"] == jax.device_count()
    assert entry["num_tokens"] == 2 * 8 * 16
    assert entry["mfu"] is None  # of a CPU no peak is known
    assert entry["history"][0]["validation_loss"] == pytest.approx(
        math.log(len(set(README))), rel=0.3
    )
    assert math.isfinite(entry["final_validation_loss"])
    assert f"| {name} " in capsys.readouterr().out
    assert list(tmp_path.glob(f"nanogpt_shakespeare_nano_{name}_seed0.png"))


def test_training_lowers_the_loss(tmp_path):
    _, entry = run_main(tmp_path, "--optimizer", "muon", "--steps", "30")
    losses = [point["validation_loss"] for point in entry["history"]]
    assert losses[-1] < losses[0] - 0.5


# ------------------------------------------------------------------------ resuming


def run_of(task, name, plan, store=None):
    return train.Run(task, name, nanogpt.build_method(task, name, plan), plan, store)


@pytest.mark.parametrize("name", ["drop_muon", "adamw"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, name):
    chosen = options("--steps", "4", "--evaluations", "2", "--seed", "3")
    task, plan = nanogpt.build_task(chosen), nanogpt.plan_of(chosen, 1e-3, 3)
    whole = run_of(task, name, plan)
    list(whole.advance())

    first = Store(tmp_path / "kept", {"name": name})
    points = run_of(task, name, plan, first).advance()
    assert [next(points).step, next(points).step] == [0, 2]
    first.close()  # and the run is forgotten
    second = Store(tmp_path / "kept", {"name": name})
    resumed = run_of(task, name, plan, second)
    assert resumed.step == 2
    list(resumed.advance())
    second.close()
    for ours, theirs in zip(
        jax.tree.leaves(resumed.state), jax.tree.leaves(whole.state), strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(resumed.history, whole.history, strict=True):
        assert ours._replace(train_time_s=0) == theirs._replace(train_time_s=0)


def test_the_command_goes_on_where_it_stopped(tmp_path):
    arguments = ["--optimizer", "adamw", "--steps", "4", "--evaluations", "2"]
    _, whole = run_main(tmp_path, *arguments)
    kept = ["--checkpoint", str(tmp_path / "kept")]
    _, part = run_main(tmp_path, *arguments, *kept, "--stop-at", "1")
    assert part["last_step"] == 2
    _, rest = run_main(tmp_path, *arguments, *kept)
    assert rest["num_restored_points"] == 2
    for key in ("validation_loss", "train_loss", "num_flops"):
        assert [p[key] for p in rest["history"]] == [p[key] for p in whole["history"]]


def test_a_checkpoint_of_another_run_is_refused(tmp_path, capsys):
    arguments = ["--optimizer", "adamw", "--steps", "1", "--evaluations", "1"]
    kept = ["--checkpoint", str(tmp_path / "kept")]
    run_main(tmp_path, *arguments, *kept)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_main(tmp_path, *arguments, *kept, "--lr", "0.5")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run with {'learning_rate': 0.5}, got one" in line


def test_a_full_disk_ends_a_run_in_one_line(tmp_path, capsys, monkeypatch):
    def full(checkpoint):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_digests", full)
    arguments = ["--optimizer", "adamw", "--steps", "1", "--evaluations", "1"]
    kept = ["--checkpoint", str(tmp_path / "kept")]
    assert nanogpt.main([*SHORT, *arguments, *kept, "--output", str(tmp_path)]) == 1
    assert "No space left on device; those before" in capsys.readouterr().err


def test_a_record_is_written_before_the_text_is_sampled(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no text")

    monkeypatch.setattr(report, "sample", broken)
    with pytest.raises(RuntimeError, match="no text"):
        run_main(tmp_path, "--optimizer", "adamw", "--steps", "1", "--evaluations", "1")
    assert len((tmp_path / "nanogpt.jsonl").read_text().splitlines()) == 1


# ------------------------------------------------------------------------- batches


def test_parts_and_devices_do_not_change_a_step(monkeypatch):
    """One batch whole on one device, and in two parts over all devices."""
    losses = []
    for num_devices, parts in ((1, 1), (4, 2)):
        mesh = train.mesh_of(jax.devices()[:num_devices])
        monkeypatch.setattr(train, "mesh_of", lambda devices, mesh=mesh: mesh)
        chosen = options("--steps", "2", "--accumulation", str(parts))
        run = run_of(
            nanogpt.build_task(chosen), "muon", nanogpt.plan_of(chosen, 0.02, 0)
        )
        losses.append([point.validation_loss for point in run.advance()])
    # sums in another order, through two steps
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_accumulated_gradients_are_means(key):
    tokens = jax.random.randint(key, (3, 2, 5), 0, 9)

    def gradient(params, part):
        return jnp.mean(part.astype(jnp.float32)), {"w": params * jnp.mean(part[0])}

    mean, grads = accumulate(gradient, jnp.float32(2.0), tokens)
    assert mean == pytest.approx(float(jnp.mean(tokens.astype(jnp.float32))))
    expected = np.mean([2.0 * np.mean(part[0]) for part in tokens])
    assert float(grads["w"]) == pytest.approx(float(expected))


def test_the_rate_falls_at_the_end():
    plan = train.Plan(10, 8, 16, learning_rate=2.0, warm_down=0.4)
    rates = [float(plan.rate_at(step / 10)) for step in range(10)]
    assert rates == pytest.approx([2.0] * 7 + [1.5, 1.0, 0.5])
    assert train.Plan(10, 8, 16, 2.0, warm_down=0.0).rate_at(0.9) == 2.0


def test_two_hosts_train_as_one(tmp_path):
    arguments = ["--optimizer", "adamw", "--steps", "2", "--evaluations", "1"]
    arguments += ["--data", "text"]
    _, alone = run_main(tmp_path, *arguments)
    folder = tmp_path / "two"
    last = ["--sample", "4", "--output", str(folder), "--distributed"]
    one_device = workers.DEVICES_FLAG.sub("", os.environ["XLA_FLAGS"])
    common = {**os.environ, **workers.settings(2), "XLA_FLAGS": one_device}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.nanogpt", *SHORT, *arguments, *last],
            cwd=ROOT,
            env={**common, workers.RANK: str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    output = [host.communicate(timeout=240)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], output
    (line,) = (folder / "nanogpt.jsonl").read_text().splitlines()
    together = json.loads(line)
    assert together["num_devices"] == 2
    # sums in another order
    np.testing.assert_allclose(
        [point["validation_loss"] for point in together["history"]],
        [point["validation_loss"] for point in alone["history"]],
        rtol=1e-5,
    )


# -------------------------------------------------------------------- bad input


def test_a_batch_must_fit_the_devices():
    chosen = options("--batch", "12")
    with pytest.raises(ValueError, match=r"1 parts times the 8 devices, got 12"):
        run_of(nanogpt.build_task(chosen), "adamw", nanogpt.plan_of(chosen, 1e-3, 0))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--optimizer", "sgd"], "choose from .*scion"),
        (["--data", "pile"], "choose from .*shakespeare"),
        (["--preset", "big"], "choose from .*tiny"),
        (["--lr=-1"], "must be a positive number, got '-1'"),
        (["--warm-down", "2"], r"must lie in \[0, 1\], got '2'"),
        (["--steps", "0"], "must be a positive integer, got '0'"),
    ],
)
def test_bad_arguments_are_refused(refusal, arguments, match):
    assert re.search(match, refusal(lm_options.parse, arguments))


def test_a_text_without_the_tokenizer_is_refused():
    with pytest.raises(ValueError, match="`tokenizer` of wiki must be one of gpt2"):
        nanogpt.build_task(options("--data", "wiki", "--tokens", "char"))


# --------------------------------------------------------------------------- radii


def test_radii_are_those_that_one_step_of_gluon_shows(monkeypatch):
    """With one pair measured, L⁰ + L¹‖∇f‖⋆ is its L̂; by NumPy's SVD."""
    monkeypatch.setattr(radii, "PILOT_STEPS", 3)
    monkeypatch.setattr(radii, "PILOT_EVERY", 3)
    monkeypatch.setattr(radii, "PILOT_SHARE", 0.01)  # first steps bend much
    chosen = options("--steps", "9")
    task, plan = nanogpt.build_task(chosen), nanogpt.plan_of(chosen, 1.0, 0)
    model, note = radii.with_radii(task, plan)

    gluon = dm.gluon(OPTIMIZERS["gluon"].learning_rate, task.model.layers)
    params = task.draw(0)
    state, gradient = gluon.init(params), jax.grad(steps.build_loss(task.model))
    for step in range(3):
        before, tokens = params, train.batch_of(task, plan, step)[0]
        updates, state = gluon.update(gradient(before, tokens), state, before)
        params = optax.apply_updates(before, updates)
    near = jax.tree.map(lambda x, y: x + 0.01 * (y - x), before, params)
    old, new = gradient(before, tokens), gradient(near, tokens)
    for block in ("block_0", "block_1"):  # square matrices: plain spectral norms
        was, now, x, y = (
            np.float64(tree[block]["attention"]["key"]["kernel"])
            for tree in (old, new, before, near)
        )
        change, size = (np.linalg.norm(m, "nuc") for m in (now - was, now))
        path = f"{block}/attention/key/kernel"
        (fit,) = (fit for fit in note["fits"] if fit["path"] == path)
        length = np.linalg.norm(y - x, 2)
        # Gradients in float32 are known to 1e-6, and differ here by some 1e-3.
        assert fit["honesty"] == pytest.approx(change / size, rel=1e-2)
        assert fit["l0"] + fit["l1"] * size == pytest.approx(change / length, rel=1e-2)
        assert fit["pilot_radius"] == pytest.approx(100 * length, rel=1e-2)
        assert fit["radius"] == pytest.approx(size / (change / length), rel=1e-2)
        radius = model.layers(params)[block]["attention"]["key"]["kernel"].radius
        assert radius == 50.0
        found = model.estimated(params)[block]["attention"]["key"]["kernel"].radius
        assert found == dm.AdaptiveRadius(fit["l0"], fit["l1"])


def test_gluon_on_theory_needs_measured_radii():
    task = nanogpt.build_task(options())
    with pytest.raises(ValueError, match="measured radii, `estimated`, got None"):
        OPTIMIZERS["gluon_theory"].build(task.model).init(task.draw(0), 0)


# ---------------------------------------------------------------------------- sweep


def test_a_recorded_rate_is_not_run_again(tmp_path, monkeypatch):
    arguments = [*SHORT, "--steps", "2", "--sweep-steps", "1", "--sweep-only"]
    arguments += ["--optimizers", "adamw", "--factors", "1", "--output", str(tmp_path)]
    assert sweep.main(arguments) == 0
    lines = (tmp_path / "nanogpt_rates.jsonl").read_text()
    assert len(lines.splitlines()) >= 3  # until the best has neighbors
    assert not (tmp_path / "nanogpt.jsonl").exists()
    with monkeypatch.context() as patched:
        patched.setattr(train, "Run", None)  # nothing can run
        assert sweep.main(arguments) == 0
        with pytest.raises(TypeError):  # other settings
            sweep.main([*arguments, "--warm-down", "0.25"])
    assert (tmp_path / "nanogpt_rates.jsonl").read_text() == lines


def test_a_staged_cutoff_goes_by_the_number_of_steps():
    method = OPTIMIZERS["drop_muon_staged"].build(nanogpt.build_task(options()).model)
    plan = train.Plan(8, 8, 16, 1.0)
    moving = [sum(method.sets_at(plan, step).active) for step in range(8)]
    assert moving == [4] * 6 + [2] * 2  # embedding, two blocks, head


def test_a_sweep_compares_optimizers(tmp_path, capsys):
    status = sweep.main(
        [
            *(*SHORT, "--steps", "2", "--evaluations", "2", "--sweep-steps", "1"),
            *("--optimizers", "adamw", "muon", "--factors", "1", "--seeds", "0", "1"),
            *("--output", str(tmp_path)),
        ]
    )
    assert status == 0
    written = (tmp_path / "nanogpt.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    assert [(line["optimizer"], line["seed"]) for line in lines] == [
        *(("adamw", 0), ("muon", 0), ("adamw", 1), ("muon", 1))
    ]
    assert lines[0]["history"][0] != lines[2]["history"][0]  # other weights
    for line in lines:
        tried = dict(line["rates_tried"])
        assert line["learning_rate"] == min(tried, key=tried.get)
        assert len(line["stretch_step_times_s"]) == 2
    out = capsys.readouterr().out
    assert "| adamw " in out
    assert "| muon " in out
    assert (tmp_path / "nanogpt_shakespeare_nano.png").stat().st_size > 10_000


def test_rates_are_tried_until_the_best_has_neighbors():
    assert sweep.beyond({0.1: 3.0, 0.2: 2.0, 0.4: 2.5}) == []
    assert sweep.beyond({0.1: 3.0, 0.2: 2.0}) == [0.4]
    assert sweep.beyond({0.1: 1.0, 0.2: math.inf}) == [0.05]


def test_known_rates_are_not_swept(refusal):
    arguments = ["--optimizers", "adamw", "--rates", "adamw=0.25"]
    chosen = sweep.parse([*SHORT, *arguments])
    tried = sweep.sweep(chosen, None, "adamw", None)
    assert sweep.tried_by(tried) == [(0.25, None)]
    assert "unknown optimizer" in refusal(sweep.parse, ["--rates", "sgd=1"])


def entry_of(losses, times=(), name="muon"):
    history = [
        {"num_tokens": 10 * i, "train_time_s": 2.0 * i, "validation_loss": loss}
        for i, loss in enumerate(losses)
    ]
    return {
        "optimizer": name,
        "history": history,
        "final_validation_loss": losses[-1],
        "stretch_step_times_s": list(times),
    }


def test_the_way_to_a_loss_is_measured_to_what_both_reach():
    fast, slow = entry_of([4.0, 2.0, 1.0]), entry_of([4.0, 3.0, 2.0])
    assert sweep_report.to_loss([fast], [slow], "num_tokens") == pytest.approx(0.5)
    assert sweep_report.to_loss([slow], [fast], "train_time_s") == pytest.approx(2.0)
    assert sweep_report.to_loss([fast], [entry_of([4.0, None])], "num_tokens") is None


def test_times_are_compared_inside_a_turn():
    ours, base = entry_of([1.0], [1.0, 30.0]), entry_of([1.0], [2.0, 60.0])
    assert sweep_report.time_ratio([ours], [base]).median == pytest.approx(0.5)


# ---------------------------------------------------------------------------- costs


def test_a_full_step_costs_six_flops_a_weight():
    config = gpt.PRESETS["124m"]
    expected = 6 * 123_568_128 + 12 * 12 * 1024 * 768  # PaLM, appendix B
    assert lm_costs.model_flops(config, 1024) == expected


@pytest.mark.parametrize("tied", [False, True])
def test_the_fewer_layers_move_the_less_a_step_costs(tied):
    config = gpt.Config(3, 2, 16, 32, tied=tied)
    num_layers = len(gpt.layer_order(config))
    costs = [
        lm_costs.model_flops(config, 8, [i >= cutoff for i in range(num_layers)])
        for cutoff in range(num_layers)
    ]
    assert costs[0] == lm_costs.model_flops(config, 8)
    assert costs == sorted(costs, reverse=True)
    if not tied:  # the forward pass, and the head's gradient
        forward = 2 * (3 * 12 * 16**2 + 16 * 32) + 3 * 4 * 8 * 16
        assert costs[-1] == forward + 2 * 16 * 32


def test_oracles_cost_what_they_multiply():
    config = gpt.PRESETS["124m"]
    square = 2 * 5 * 3 * 768**3  # the plain form
    wide = 2 * (4 * 768**2 * 3072 + 14 * 768**3)  # the Gram form, restarted once
    expected = 12 * (4 * square + 2 * wide)
    assert lm_costs.oracle_flops(config, "muon") == expected
    plain = 2 * 5 * (2 * 768**2 * 3072 + 768**3)
    expected_of_optax = 12 * (4 * square + 2 * plain)
    assert lm_costs.oracle_flops(config, "optax_muon") == expected_of_optax
    assert lm_costs.oracle_flops(config, "adamw") == 0
    active = [False] * 7 + [True] * 6
    assert lm_costs.oracle_flops(config, "drop_muon", active) == expected / 2


@pytest.mark.parametrize(
    ("platform", "kind", "peak"),
    [
        ("cpu", "cpu", None),
        ("gpu", "NVIDIA H100 80GB HBM3", 989e12),
        ("gpu", "NVIDIA H100 PCIe", 756e12),
        ("gpu", "NVIDIA A100-SXM4-80GB", 312e12),
        ("tpu", "TPU v5 lite", 197e12),
        ("gpu", "Some other device", None),
    ],
)
def test_peaks_are_known_by_kind(platform, kind, peak):
    device = types.SimpleNamespace(platform=platform, device_kind=kind)
    assert lm_costs.peak_flops(device) == peak


# --------------------------------------------------------------------------- sample


def test_a_sample_goes_on_from_its_prompt():
    corpus = text.split_text("readme", "abcd" * 50, "char")

    def apply(params, tokens):  # after each letter, almost surely the next one
        return 50.0 * jax.nn.one_hot((tokens + 1) % 4, 6)  # two ids that pad

    def sample(prompt):
        return report.sample(
            apply, None, corpus, prompt=prompt, num_tokens=9, length=4, seed=0
        )

    assert sample("c") == "cdabcdabcd"
    assert sample("abcdab") == "abcdabcdabcdabc"
    with pytest.raises(ValueError, match="`prompt` must have at least one token"):
        sample("")


def test_vocabularies_of_tokens_are_padded():
    assert nanogpt.padded_vocabulary(text.split_text("x", "abc" * 9, "char")) == 3
    corpus = text.split_text("x", "abc" * 9, "char")
    gpt2 = corpus._replace(tokenizer="gpt2", vocab_size=50_257)
    assert nanogpt.padded_vocabulary(gpt2) == 50_304
