"""`python -m benchmarks.drop_muon.cnn`, from the command line to its files."""

import json

import pytest

from benchmarks.drop_muon import cnn, methods, report
from benchmarks.drop_muon.methods import CUTOFFS, METHODS

ARGUMENTS = ["--data", "digits", "--limit", "96", "--batch-size", "16"]
ARGUMENTS += ["--seeds", "3", "--steps", "6", "--rounds", "1", "--evaluations", "2"]


@pytest.mark.usefixtures("standard_promotion")  # Optax's schedules
def test_all_methods_and_both_protocols(tmp_path, capsys):
    arguments = [*ARGUMENTS, "--budgets", "0.3", "0.6", "--output", str(tmp_path)]
    arguments += ["--learning-rate", "muon=0.01,0.02"]
    assert cnn.main(arguments) == 0
    path = tmp_path / "drop_muon_cnn.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(entries) == 3 * (len(METHODS) + 1)
    assert {entry["method"] for entry in entries} == set(METHODS)
    for entry in entries:
        check_entry(entry)
    muon = [e for e in entries if e["method"] == "muon" and not e["budget_s"]]
    assert [entry["learning_rate"] for entry in muon] == [0.01, 0.02]
    uniform = next(e for e in entries if e["method"] == "uniform")
    assert 0 < uniform["history"][-1]["num_flops"] < muon[0]["history"][-1]["num_flops"]
    out = capsys.readouterr().out
    assert "digits, same steps" in out
    assert "digits, same time" in out
    picture = tmp_path / "drop_muon_cnn_digits.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    assert report.main([str(path)]) == 0
    assert picture.exists()


def check_entry(entry):
    assert len(entry["step_times_of_cutoffs_s"]) == 4
    assert sum(entry["optimal_probabilities"]) == pytest.approx(1)
    assert entry["train_time_s"] > 0
    if entry["budget_s"] is None:
        assert entry["num_steps"] == 6
        assert [point["step"] for point in entry["history"]] == [3, 6]
    elif entry["num_steps"] > 1:
        assert entry["planned_time_s"] <= entry["budget_s"]


def test_a_budget_is_filled_and_the_rate_falls_to_zero():
    times = dict(zip(CUTOFFS, (1.0, 0.75, 0.5, 0.25), strict=True))
    for name in ("uniform", "epoch_shift"):
        plan = methods.plan_budget(METHODS[name], 100.0, times, (1.0,), seed=0)
        costs = [times[active] for active in plan.active]
        assert 99 < sum(costs) <= 100
        assert plan.rate_shares[0] == 1.0
        assert plan.rate_shares[-1] == pytest.approx(1 - sum(costs[:-1]) / 100)
    plan = methods.plan_budget(METHODS["muon"], 10.0, {None: 1.0}, (1.0,), seed=0)
    assert plan.active == [None] * 10


def test_time_to_an_accuracy():
    def ended(time_s, accuracy):
        return {"train_time_s": time_s, "final_validation_accuracy": accuracy}

    runs = [ended(1.0, 0.6), ended(4.0, 0.8), ended(2.0, 0.7)]
    assert report.time_of_budgets(runs, 0.75) == pytest.approx(8**0.5)
    assert report.time_of_budgets(runs, 0.5) is None  # an upper bound alone
    assert report.time_of_budgets(runs, 0.9) is None
    assert report.first_time([(1.0, 0.5), (2.0, 0.4)], 0.5) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "sgd"], "epoch_shift"),
        (["--learning-rate", "sgd=0.1"], "epoch_shift"),
        (["--learning-rate", "muon=fast"], "must be a positive number"),
        (["--batch-size", "0"], "must be a positive integer"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, refusal):
    assert message in refusal(cnn.parse, arguments)
