"""`python -m benchmarks.ef21_workers`: two processes train, are counted, and resume."""

import json
import shutil

import jax
import numpy as np
import pytest

from benchmarks.ef21_muon import loop, steps, workers
from benchmarks.ef21_muon.steps import Plan

PLAN = Plan(
    method="natural",
    preset="nano",
    dataset="shakespeare",
    num_steps=10,
    every=5,
    batch_size=3,
    length=8,
    learning_rate=1e-3,
    momentum=0.9,
    seed=0,
    num_workers=4,
)


def lines(folder):
    path = folder / f"{workers.NAME}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("text")
@pytest.mark.timeout(1800)  # six processes, four of which compile two programs
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, capfd):
    common = ["--processes", "2", "--methods", "natural", "--preset", "nano"]
    common += ["--steps", "4", "--every", "2", "--batch-size", "2", "--length", "8"]
    common += ["--dataset", "text", "--output", str(tmp_path)]
    common += ["--checkpoints", str(tmp_path / "kept")]
    assert workers.main(common) == 0
    (whole,) = lines(tmp_path)
    check_record(whole)
    out = capfd.readouterr()
    assert "| natural |" in out.out
    assert "4/4" in out.err
    assert (tmp_path / "ef21_workers.png").read_bytes().startswith(b"\x89PNG")

    with pytest.raises(SystemExit) as stopped:  # nothing is trained in vain
        workers.main(common)
    assert stopped.value.code == 2
    assert "holds a run of natural" in capfd.readouterr().err

    shutil.rmtree(tmp_path / "kept" / "natural" / "4")  # as if it had died before
    assert workers.main([*common, "--resume"]) == 0
    resumed = lines(tmp_path)[1]
    assert resumed["resumed_from_step"] == 2
    # Bit for bit: the state is restored whole, and batches are a function of the step.
    for name in ("train_loss", "validation_loss", "validation_loss_of_w", "sent_bytes"):
        ends = [run["history"][-1][name] for run in (whole, resumed)]
        assert ends[0] == ends[1], name

    for other, names in (
        (["--seed", "1"], "'seed': 1"),
        (
            ["--processes", "3"],
            "'num_workers': 3",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            workers.main([*common, "--resume", *other])
        assert stopped.value.code == 2
        *_, line = capfd.readouterr().err.splitlines()
        assert f"must be a folder of a run with {{{names}}}, got one with" in line


def check_record(entry):
    assert entry["num_workers"] == entry["num_processes"] == 2
    assert entry["resumed_from_step"] is None
    assert [point["step"] for point in entry["history"]] == [0, 2, 4]
    kinds = entry["sent_bytes_per_step_by_kind"]
    assert set(kinds) == {"all-to-all", "all-gather", "all-reduce"}
    assert kinds["all-reduce"] == 4  # the loss; no gradient goes that way
    assert entry["sent_bytes_per_step"] < entry["all_reduce_bytes_per_step"] / 3
    assert entry["unattributed"] == []
    seen = entry["loopback_bytes_per_step_of_all"]
    # A bound below only: all of the machine's traffic is in it, and frames besides.
    assert seen is None or seen >= entry["counted_bytes_per_step_of_all"]


@pytest.mark.usefixtures("text")
def test_no_worker_sees_the_text_of_another():
    corpus = loop.text.load("shakespeare")
    train = (np.arange(len(corpus.train[0])),)  # a token is its place
    mesh = jax.make_mesh((4,), (steps.AXIS,), devices=jax.devices()[:4])
    quarter = len(train[0]) // 4
    for step in range(3):
        windows = loop.batch(PLAN, corpus._replace(train=train), mesh, step)
        assert windows.shape == (4 * 3, 8 + 1)
        for worker in range(4):
            own = np.asarray(windows)[3 * worker : 3 * worker + 3]
            assert own.min() >= worker * quarter
            assert own.max() < (worker + 1) * quarter
    assert len(np.unique(np.asarray(windows)[:, 0] % quarter)) > 4  # drawn apart


def test_the_rate_falls_at_the_end():
    rate = steps.rates(PLAN)
    found = [float(rate(count)) for count in (0, 7, 9, 10)]
    np.testing.assert_allclose(found, [1e-3, 1e-3, 1e-3 / 3, 0.0], rtol=1e-6)


def test_the_table_shows_what_was_not_measured_as_a_dash():
    entry = {
        "method": "dense",
        "sent_bytes_per_step": 1000.0,
        "sent_bytes_per_step_by_kind": {"all-reduce": 1000.0},
        "all_reduce_bytes_per_step": 7000.0,
        "counted_bytes_per_step_of_all": 4000.0,
        "loopback_bytes_per_step_of_all": None,
        "step_time_s": None,
        "final_validation_loss": None,
        "final_validation_loss_of_w": 1.5,
    }
    *_, row = workers.table([entry]).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "dense", "1.0 kB", "1 / 7.00", "—", "4.0 kB", "—", "—", "—", "not finite",
        "1.500",
    ]  # fmt: skip


def test_resuming_needs_a_folder(refusal):
    assert "--checkpoints" in refusal(workers.parse, ["--resume"])
