"""Blocks that are absent, gone around or without oracle; equal FLOPs."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from benchmarks.language import costs, dropped, growth, growth_report, nanogpt, train
from benchmarks.language import options as lm_options
from benchmarks.language.checkpoints import Store
from benchmarks.language.methods import OPTIMIZERS
from benchmarks.language.plan import Plan, Sets, flops_of_steps, step_flops, within
from benchmarks.language.steps import build_loss
from benchmarks.models import nanogpt as gpt

CONFIG = gpt.Config(4, 2, 16, 32, tied=False)
PLAN = Plan(10, 4, 8, learning_rate=1.0)
SHORT = ["--preset", "nano", "--batch", "8", "--length", "16"]
SHORT += ["--validation-windows", "8"]
ALL = (True,) * 6

# Optax's Adam and schedules mix ints and floats.
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def text(use_as_shakespeare):
    """A text in place of Shakespeare."""
    use_as_shakespeare("the quick brown fox jumps over the lazy dog; " * 200)


def model_of(config=CONFIG, **knobs):
    mesh = train.mesh_of(jax.devices()[:1])
    model = nanogpt.Model(config, lambda params, tokens: tokens, False, mesh)
    return model._replace(**knobs)


def build(*arguments):
    chosen = ["--optimizer", "drop_muon_grown", *arguments]
    return nanogpt.build_task(lm_options.parse([*SHORT, *chosen]))


# ---------------------------------------------------------------------------- costs


@pytest.mark.parametrize("blocks", ["1000", "0110", "0101", "1111"])
def test_absent_blocks_cost_what_a_network_without_them_does(blocks):
    present = (True, *(mark == "1" for mark in blocks), True)
    few = dataclasses.replace(CONFIG, num_layers=blocks.count("1"))
    found = step_flops(CONFIG, "gluon", PLAN, Sets(present, present, present))
    assert found == step_flops(few, "gluon", PLAN, None)


def test_going_around_a_block_saves_its_backward_pass():
    active = (True, True, False, True, False, True)
    through = costs.model_flops(CONFIG, 8, active)
    around = costs.model_flops(CONFIG, 8, active, around=True)
    inputs = 2 * 12 * 16**2 + 4 * 2 * 8 * 16  # of a block's products and scores
    assert through - around == 2 * inputs
    assert costs.model_flops(CONFIG, 8, ALL, around=True) == costs.model_flops(
        CONFIG, 8
    )


def test_sign_steps_cost_the_network_alone():
    sets = OPTIMIZERS["sign_muon"].build(model_of()).sets_at
    whole = step_flops(CONFIG, "gluon", PLAN, None)
    assert step_flops(CONFIG, "sign_muon", PLAN, sets(PLAN, 0)) == whole
    assert step_flops(CONFIG, "sign_muon", PLAN, sets(PLAN, 1)) == (whole[0], 0.0)


# --------------------------------------------------------------------------- budget


@pytest.mark.parametrize("name", ["gluon", "drop_muon", "drop_muon_grown", "sign_muon"])
def test_a_budget_has_as_many_steps_as_fit(name):
    sets_at = OPTIMIZERS[name].build(model_of()).sets_at
    plan = within(CONFIG, name, PLAN, sets_at, 40.0)
    limit = 40 * sum(step_flops(CONFIG, "gluon", PLAN, None))

    def cost(num_steps):
        longer = plan._replace(num_steps=num_steps)
        return flops_of_steps(CONFIG, name, longer, sets_at).sum()

    assert cost(plan.num_steps) <= limit * (1 + 1e-9) < cost(plan.num_steps + 1)
    assert (plan.num_steps == 40) == (name == "gluon")


def test_a_budget_of_less_than_a_step_is_refused():
    with pytest.raises(ValueError, match=r"enough for a step, got 0\.5"):
        within(CONFIG, "gluon", PLAN, lambda plan, step: None, 0.5)


def test_the_rate_falls_with_the_flops_that_are_left():
    task = build("--growth", "0.8:10")
    method = OPTIMIZERS["drop_muon_grown"].build(task.model)
    plan = PLAN._replace(num_steps=60, batch_size=8, length=16, warm_down=0.5)
    run = train.Run(task, "drop_muon_grown", method, plan)
    costs_of = run.flops.sum(axis=1)
    assert costs_of[0] < costs_of[-1]
    left = 1.0 - np.concatenate([[0.0], np.cumsum(costs_of)[:-1]]) / costs_of.sum()
    rates = [float(run.rate_at(step)) for step in range(60)]
    np.testing.assert_allclose(rates, np.minimum(1.0, left / 0.5), rtol=1e-6)


# --------------------------------------------------------------------------- growth


def test_stages_get_their_shares_of_the_flops():
    sets_at = (
        OPTIMIZERS["drop_muon_grown"]
        .build(model_of(growth="0.3:0100,0.5:0110"))
        .sets_at
    )
    plan = PLAN._replace(num_steps=1000)
    sets = [sets_at(plan, step) for step in range(1000)]
    spent = {}
    for some in sets:
        flops = sum(step_flops(CONFIG, "drop_muon_grown", plan, some))
        name = growth_report.name_of(some, 4)
        spent[name] = spent.get(name, 0.0) + flops
    assert list(spent) == ["0100", "0110", "1111"]
    shares = np.array(list(spent.values())) / sum(spent.values())
    np.testing.assert_allclose(shares, [0.3, 0.5, 0.2], atol=2e-3)  # half a step each
    assert all(some.present == some.active == some.oracle for some in sets)


@pytest.mark.parametrize(
    "text",
    ["0.8", "1.0:1100", "0.5:110", "0.5:1100,0.6:1110", "0:1100", "0.5:0000", "x:1100"],
)
def test_what_is_no_growth_is_refused(text):
    with pytest.raises(ValueError, match="`growth` must be stages share:blocks for 4"):
        dropped.read_growth(text, CONFIG)


def test_growth_and_oracles_at_every_other_step_go_together():
    model = model_of(growth="0.6:1100", outside_share=0.25)
    sets_at = OPTIMIZERS["sign_muon_grown"].build(model).sets_at
    plan = PLAN._replace(num_steps=9)
    names = [growth_report.name_of(sets_at(plan, step), 4) for step in range(9)]
    enters = min(names.index(whole) for whole in ("1111", "ssss"))
    assert set(names[:enters:2]) == {"1100"}
    assert set(names[1:enters:2]) == {"ss00"}
    assert names[enters:] == [
        "ssss" if step % 2 else "1111" for step in range(enters, 9)
    ]


def test_half_is_the_first_half():
    _, rows = dropped.read_growth("0.8:half", CONFIG)
    assert rows == [(True, True, True, False, False, True), ALL]


@pytest.mark.parametrize("scan", [[], ["--scan"]], ids=["unrolled", "scanned"])
def test_a_block_enters_without_a_jump_and_begins_to_move(scan):
    task = build("--growth", "0.6:10", *scan)
    method = OPTIMIZERS["drop_muon_grown"].build(task.model)
    plan = PLAN._replace(num_steps=12, batch_size=8, length=16)
    plan = plan._replace(learning_rate=5e-4, num_evaluations=12)
    run = train.Run(task, "drop_muon_grown", method, plan)
    sets = [method.sets_at(plan, step) for step in range(12)]
    named = [growth_report.name_of(some, 2) for some in sets]
    enters = named.index("11")
    assert 0 < enters < 11
    points = run.advance()

    def late(tree):
        tree = tree["blocks"] if scan else tree["block_1"]
        return [np.asarray(x[1] if scan else x) for x in jax.tree.leaves(tree)]

    first = late(run.state[0])
    for _ in range(enters + 1):
        next(points)
    for new, old in zip(late(run.state[0]), first, strict=True):
        np.testing.assert_array_equal(new, old)
    batch = train.batch_of(task, plan, enters)[0]
    losses = [
        float(build_loss(task.model)(run.state[0], batch, sets))
        for sets in (method.sets_at(plan, 0), method.sets_at(plan, 11))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    next(points)
    changed = [np.any(a != b) for a, b in zip(late(run.state[0]), first, strict=True)]
    assert sum(changed) == 2  # the outputs: what is before them has no gradient yet
    next(points)
    changed = [np.any(a != b) for a, b in zip(late(run.state[0]), first, strict=True)]
    assert all(changed)


def test_a_grown_run_resumes_across_the_entrance(tmp_path):
    task = build("--growth", "0.6:10")
    method = OPTIMIZERS["drop_muon_grown"].build(task.model)
    plan = PLAN._replace(num_steps=6, batch_size=8, length=16, learning_rate=1e-3)
    plan = plan._replace(num_evaluations=3)
    whole = train.Run(task, "drop_muon_grown", method, plan)
    list(whole.advance())
    for _ in range(4):  # to be interrupted after each evaluation
        store = Store(tmp_path / "kept", {})
        run = train.Run(task, "drop_muon_grown", method, plan, store)
        next(run.advance(), None)
        store.close()
    assert run.step == 6
    jax.tree.map(np.testing.assert_array_equal, run.state, whole.state)


# ------------------------------------------------------------------------ the report


def entry_of(optimizer, seed, loss, **others):
    entry = {"optimizer": optimizer, "seed": seed, "final_validation_loss": loss}
    entry |= {"data": "shakespeare", "preset": "nano", "sign_radius": 500.0}
    entry |= {"warm_down": 0.5, "batch_size": 8, "length": 16, "growth": "0.5:10"}
    return entry | {"budget": 10.0, "num_steps": 10, "learning_rate": 1.0} | others


def time_of(program, median, preset="nano"):
    task = {"data": "shakespeare", "preset": preset, "batch": 8, "length": 16}
    return {"program": program, "step_time_s": {"median": median}, **task}


TIMES = [
    time_of("gluon all", 9.0),  # an older line
    time_of("gluon all", 2.5),
    time_of("drop_muon_grown 10", 1.0),
    time_of("drop_muon_grown 11", 3.0),
    time_of("drop_muon_grown 11", 7.0, "micro"),
]


def test_a_run_is_valued_by_a_table_of_step_times():
    entry = entry_of("drop_muon_grown", 0, 1.0, stages=[("10", 2), ("11", 1)])
    known = growth_report.times_of(entry, TIMES)
    assert growth_report.train_times(entry, known) == [0.0, 1.0, 2.0, 5.0]
    assert growth_report.saved_time(entry, 4, TIMES) == "2.00"  # 4 · 2.5 over 5
    signs = [time_of("sign_muon_grown 10", 1.0), time_of("sign_muon_grown s0", 3.0)]
    entry = entry_of("sign_muon_grown", 0, 1.0, stages=[("10", 2), ("s0", 2)])
    known = growth_report.times_of(entry, signs)
    assert growth_report.train_times(entry, known) == [0.0, 2.0, 4.0, 6.0, 8.0]
    entry = entry_of("drop_muon_grown", 0, 1.0, stages=[])
    untimed = entry | {"stages": [("10", 2), ("01", 1)]}
    assert growth_report.train_times(untimed, known) is None
    assert growth_report.saved_time(untimed, 4, TIMES) == "—"


def test_gluon_counts_at_its_best_rate_and_seed_by_seed():
    full = [
        entry_of("gluon", seed, loss, learning_rate=lr)
        for lr, losses in ((1.0, (2.0, 2.0, 2.0)), (2.0, (1.5, 1.0, 1.4)))
        for seed, loss in enumerate(losses)
    ]
    full.append(entry_of("gluon", 0, 0.1, learning_rate=4.0))  # a single seed
    full.append(entry_of("gluon", 0, 0.1, num_steps=6, budget=6.0))  # too short
    stages = [("10", 2), ("11", 1)]
    own = [
        entry_of("drop_muon_grown", seed, loss, budget=8.0, stages=stages)
        for seed, loss in enumerate((1.2, 1.1, 1.4))
    ]
    older = [entry_of("gluon", seed, 0.1, learning_rate=2.0) for seed in range(3)]
    assert growth_report.base_runs(full, older) == full
    row = growth_report.compared(own, full, TIMES).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == [
        "drop_muon_grown 0.5:10, shakespeare, nano",
        "1",
        "1.25",
        "5.00",
    ]
    assert cells[4:] == [
        *("1.2333", "1.1000 … 1.4000", "1.3000", "1.0000 … 1.5000", "2 of 3")
    ]


# ---------------------------------------------------------------------- the command


def test_runs_are_recorded_once_and_compared(tmp_path, capsys):
    arguments = [*SHORT, "--output", str(tmp_path), "--evaluations", "1"]
    arguments += ["--optimizers", "gluon", "drop_muon_grown", "--budgets", "4"]
    arguments += ["--recipes", "0.6:10", "0.4:01", "--seeds", "0", "1", "2"]
    assert growth.main(arguments) == 0
    lines = (tmp_path / growth.LINES).read_text()
    entries = [json.loads(line) for line in lines.splitlines()]
    assert len(entries) == 9
    assert all(math.isfinite(entry["final_validation_loss"]) for entry in entries)
    limit = max(e["num_flops"] for e in entries if e["optimizer"] == "gluon")
    assert all(0.7 * limit <= entry["num_flops"] <= limit for entry in entries)
    assert growth.main(arguments) == 0
    assert (tmp_path / growth.LINES).read_text() == lines
    out = capsys.readouterr().out
    assert "| drop_muon_grown 0.6:10 |" in out
    assert "of 10 + " in out
    assert (tmp_path / "language_grown_shakespeare_nano.png").stat().st_size > 10_000


def test_a_recipe_of_another_kind_is_refused(capsys):
    arguments = [*SHORT, "--optimizers", "sign_muon", "--recipes", "0.6:10"]
    with pytest.raises(SystemExit):
        growth.main(arguments)
    assert "`recipes` must be numbers for methods without" in capsys.readouterr().err
