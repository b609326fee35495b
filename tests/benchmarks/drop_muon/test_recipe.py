"""`python -m benchmarks.drop_muon.recipe`: plans, steps from kept outputs, tables."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from benchmarks.common import data, timing
from benchmarks.drop_muon import (
    recipe,
    recipe_costs,
    recipe_report,
    recipe_steps,
    recipes,
)
from benchmarks.drop_muon.recipes import METHODS, Kind
from benchmarks.models import cnn

FROM_3 = (False, False, True, True)


def made_up(method):
    """A step costs as many units as it moves layers, and as it runs ones."""
    step = {
        kind: float(sum(kind.active or (True,) * 4) + 4 - kind.start)
        for kind in recipes.kinds(method)
    }
    kept = {(0, 1): 0.01, (0, 2): 0.02, (1, 2): 0.01}
    return recipes.Costs(step, kept, num_checked=10)


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_fills_its_budget_in_the_order_of_its_stages(name):
    method = METHODS[name]
    costs = made_up(method)
    plan = recipes.plan(method, 2000.0, costs, num_samples=5000, seed=3)
    kinds = [kind for part in plan.parts for kind in part.kinds]
    assert 1980 < plan.cost <= 2000
    assert recipes.cost(plan, costs) == pytest.approx(plan.cost)
    assert plan.progress[0] == 0
    assert plan.progress == sorted(plan.progress)
    assert plan.progress[-1] < 1
    assert len(plan.progress) == len(kinds)
    for step, kind in enumerate(kinds):  # nothing that may move again is kept
        assert kind.start <= plan.sampling.settled(4, step)
    for part, stage in zip(plan.parts, method.stages, strict=True):
        assert bool(part.num_kept) == bool(stage.passes)
        if part.num_kept:
            read = len(part.kinds) * method.batch_size
            assert read / part.num_kept == pytest.approx(stage.passes, rel=0.05)
        start = math.fsum(s.share for s in method.stages[: method.stages.index(stage)])
        assert plan.progress[part.first_step] == pytest.approx(
            start, abs=0.05
        )  # keeping is paid first


def test_no_more_samples_are_kept_than_there_are():
    method = METHODS["freeze_and_keep"]
    plan = recipes.plan(method, 2000.0, made_up(method), num_samples=320, seed=0)
    assert [part.num_kept for part in plan.parts] == [0, 320, 320]


def test_kept_outputs_go_on_from_those_kept_before_and_cost_what_is_left():
    method = METHODS["freeze_and_keep"]._replace(keeps_on=True)
    costs = made_up(method)
    second, third = recipes.plan(method, 2000.0, costs, 50_000, seed=0).parts[1:]
    assert second.sources() == [((0, 1), second.num_kept)]
    new = third.num_kept - second.num_kept
    assert third.sources() == [((1, 2), second.num_kept), ((0, 2), new)]
    assert new > 0
    paid = 0.01 * (second.num_kept + 10) + 0.02 * (new + 10)
    assert costs.of_keeping(third) == pytest.approx(paid)
    apart = METHODS["freeze_and_keep"]
    third = recipes.plan(apart, 2000.0, costs, 50_000, seed=0).parts[2]
    assert third.sources() == [((0, 2), third.num_kept)]
    few = recipes.plan(method, 2000.0, costs, num_samples=64, seed=0).parts[2]
    assert few.sources() == [((1, 2), 64)]


@pytest.mark.usefixtures("standard_promotion")
def test_outputs_kept_in_two_goes_are_those_of_the_samples_read(network, monkeypatch):
    dataset = data.head(data.load("digits"), 256)
    method = METHODS["freeze_and_keep"]._replace(keeps_on=True)
    plan = recipes.plan(method, 150.0, made_up(method), 256, seed=0)
    assert 0 < plan.parts[2].num_known < plan.parts[2].num_kept
    seen, program = [], recipe_steps.program

    def watched(network, kind):
        def call(params, state, rates, x, y):
            seen.append((kind.start, jax.tree.map(np.asarray, params), x, y))
            return program(network, kind).call(params, state, rates, x, y)

        return program(network, kind)._replace(call=call)

    monkeypatch.setattr(recipe_steps, "program", watched)
    params = recipe_steps.first_params(network, 0)
    list(recipe_steps.training(network, dataset, params, method, plan, 0))
    for start in (1, 2):
        _, frozen, x, y = next(s for s in reversed(seen) if s[0] == start)
        outputs = network.apply(frozen, dataset.train_images, stop=start)
        for own, label in zip(x, y, strict=True):
            gaps = np.abs(np.asarray(outputs) - own).max(axis=(1, 2, 3))
            assert gaps.min() < 1e-5
            assert dataset.train_labels[gaps.argmin()] == label


def test_rates_of_layers_fall_to_zero_where_the_recipe_freezes_them():
    method = METHODS["muon_early_decay"]
    assert recipes.rates(method, 0.0) == [1.0] * 4
    np.testing.assert_allclose(recipes.rates(method, 0.2), [0.0, 0.5, 0.8, 0.8])
    assert recipes.rates(METHODS["muon"], 0.25) == [0.75] * 4


@pytest.fixture(scope="module")
def network():
    return recipe_steps.new_network("small", (8, 8, 1))


@pytest.mark.usefixtures("standard_promotion")  # Optax's schedules
def test_steps_from_kept_outputs_are_those_from_images(network):
    params = recipe_steps.first_params(network, 0)
    images, labels = recipe_steps.batch(network, Kind(None), 32)
    found = {}
    for start in (0, 2):
        kind = Kind(FROM_3, start)
        x = images if not start else network.apply(params, images, stop=start)
        state = timing.copied((params, recipe_steps.init_state(kind, params)))
        rates = np.full(4, 0.02, np.float32)
        call = recipe_steps.program(network, kind).call
        found[start] = call(*state, rates, np.asarray(x), labels)[0]
    for name in cnn.LAYER_ORDER[:2]:
        jax.tree.map(np.testing.assert_array_equal, found[2][name], params[name])
    # Two compilations round differently, and Newton–Schulz multiplies it.
    near = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(near, found[2], found[0])


@pytest.mark.usefixtures("standard_promotion")
def test_equal_rates_for_each_layer_are_full_muon_and_a_rate_of_zero_is_none(network):
    params = recipe_steps.first_params(network, 0)
    x, labels = recipe_steps.batch(network, Kind(None), 32)

    def stepped(scaled, rates):
        kind = Kind(None, scaled=scaled)
        state = timing.copied((params, recipe_steps.init_state(kind, params)))
        call = recipe_steps.program(network, kind).call
        return call(*state, np.array(rates, np.float32), x, labels)[0]

    near = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(near, stepped(True, [0.02] * 4), stepped(False, [0.02] * 4))
    settled = stepped(True, [0.0, 0.01, 0.02, 0.02])
    jax.tree.map(np.testing.assert_array_equal, settled["conv1"], params["conv1"])
    full = stepped(False, [0.02] * 4)
    half = [settled["conv2"]["kernel"], full["conv2"]["kernel"]]
    moved = [np.asarray(x - params["conv2"]["kernel"]) for x in half]
    np.testing.assert_allclose(2 * moved[0], moved[1], rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_from_costs_to_tables(tmp_path, capsys):
    to = ["--output", str(tmp_path)]
    assert recipe_costs.main(["--data", "digits", "--rounds", "1", *to]) == 0
    assert "| from conv3, 2 kept " in capsys.readouterr().out
    costs = recipe_costs.measured(tmp_path, "small", "digits")
    steps = {recipe_costs.name_of(x): x["num_flops_per_step"] for x in costs["steps"]}
    assert steps["from conv3, 2 kept"] < steps["from conv3"] < steps["from conv1"]
    arguments = ["--data", "digits", "--limit", "128", "--seeds", "3", *to]
    arguments += ["--budgets", "0.2", "0.3", "0.4", "--costs", str(tmp_path)]
    arguments += ["--methods", "muon", "freeze_and_keep", "--equal", "s", "FLOPs"]
    assert recipe.main(arguments) == 0
    path = tmp_path / "drop_muon_recipe.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(entries) == 3 * (1 + 2)  # full Muon's runs serve for both
    for entry in entries:
        full = next(
            e
            for e in entries
            if e["method"] == "muon" and e["budget_s"] == entry["budget_s"]
        )
        if min(stage["num_steps"] for stage in entry["stages"]) == 1:
            pass  # on a busy machine a step is long, and each stage has at least one
        elif entry["equal"] == "s":
            assert entry["planned_time_s"] <= entry["budget_s"]
        else:
            assert entry["num_flops"] <= full["num_flops"]
        assert entry["stages"][0]["num_kept_images"] == 0
        assert 0 < entry["share_of_layers_moved"] <= 1
    out = capsys.readouterr().out
    assert "digits, small, the same time" in out
    assert "digits, small, the same FLOPs" in out
    assert recipe_report.main([str(path)]) == 0
    picture = tmp_path / "drop_muon_recipe_small.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_speed_ups_are_of_one_seed():
    def ended(method, seed, budget_s, accuracy):
        return {
            "method": method,
            "seed": seed,
            "budget_s": budget_s,
            "equal": "s",
            "planned_time_s": budget_s,
            "final_validation_accuracy": accuracy,
        }

    entries = [ended("muon", 0, t, a) for t, a in ((2.0, 0.5), (4.0, 0.6), (8.0, 0.7))]
    entries += [ended("ours", 0, t, a) for t, a in ((2.0, 0.6), (4.0, 0.7))]
    entries += [ended("ours", 1, 2.0, 0.9)]
    assert recipe_report.targets_of(entries) == [0.6, 0.65]
    found = recipe_report.speed_ups(entries, "ours", 0.65, "s")
    assert found == {0: pytest.approx(2.0)}
    assert recipe_report.speed_ups(entries, "ours", 0.6, "s") == {}  # a bound alone


@pytest.mark.usefixtures("standard_promotion")
def test_a_table_is_added_to_and_not_overruled(tmp_path, monkeypatch, capsys):
    measure = ["--data", "digits", "--rounds", "1", "--output", str(tmp_path)]
    only = {name: METHODS[name] for name in ("muon", "freeze_later")}
    monkeypatch.setattr(recipe_costs, "METHODS", only)
    assert recipe_costs.main(measure) == 0
    first = recipe_costs.measured(tmp_path, "small", "digits")
    monkeypatch.setattr(recipe_costs, "METHODS", METHODS)
    assert recipe_costs.main([*measure, "--add"]) == 0
    out = capsys.readouterr().out.rpartition("| step ")[2]
    assert "all (full Muon)" in out
    assert "from conv2, 1 kept" in out
    assert "keeping 2 layers' outputs from 1's" in out
    assert "keeping 2 layers' outputs |" not in out
    both = recipe_costs.measured(tmp_path, "small", "digits")
    lines = (tmp_path / recipe_costs.LINES).read_text().splitlines()
    old, new = map(json.loads, lines)
    ratio = new["kept"][0]["keeping_time_s"]["median"]
    ratio /= new["steps"][0]["step_time_s"]["median"]
    ours = next(x for x in both["kept"] if recipe_costs.span_in(x) == (0, 1))
    full = old["steps"][0]["step_time_s"]["median"]
    assert ours["keeping_time_s"]["median"] == pytest.approx(ratio * full)
    assert both["steps"][: len(first["steps"])] == first["steps"]
    assert {recipe_costs.kind_in(step) for step in both["steps"]} == set(
        recipe_costs.all_kinds()
    )


def test_without_a_table_of_costs_nothing_runs(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        recipe.main(["--data", "digits", "--costs", str(tmp_path)])
    assert exit_info.value.code == 2
    assert "benchmarks.drop_muon.recipe_costs" in capsys.readouterr().err


def test_every_set_has_a_shape():
    assert set(recipe_costs.IMAGE_SHAPES) == set(data.DATASETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "sgd"], "freeze_and_keep"),
        (["--learning-rate", "sgd=0.1"], "freeze_and_keep"),
        (["--equal", "epochs"], "FLOPs"),
        (["--budgets", "-1"], "must be a positive number"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, refusal):
    assert message in refusal(recipe.parse, arguments)
