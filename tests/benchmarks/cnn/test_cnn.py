"""`python -m benchmarks.cnn`, from the command line to its files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from benchmarks.cnn import __main__ as cnn
from benchmarks.cnn import drop, step_time
from benchmarks.cnn.__main__ import RATES

REPOSITORY = Path(__file__).resolve().parents[3]


def start(output, *arguments):
    environment = {  # as for a user: one device, and JAX as it comes
        name: value
        for name, value in os.environ.items()
        if name != "XLA_FLAGS" and not name.startswith("JAX_")
    }
    environment["JAX_PLATFORMS"] = "cpu"
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cnn", "--output", output, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(output):
    return [
        json.loads(line) for line in (output / "cnn.jsonl").read_text().splitlines()
    ]


def test_every_optimizer_leaves_a_row_a_line_and_a_curve(tmp_path):
    process = start(
        tmp_path, "--epochs", "2", "--limit", "256", "--evaluations", "2",
        "--learning-rate", "adamw=0.004",
    )  # fmt: skip
    stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    entries = lines(tmp_path)
    assert [entry["optimizer"] for entry in entries] == list(RATES)
    rows = [line for line in stdout.splitlines() if line.startswith("|")]
    assert [row.split()[1] for row in rows[2:]] == list(RATES)
    for heading in ("time to", "final train", "final validation", "mean step", "moved"):
        assert heading in rows[0]
    assert "images/s" in stderr
    assert "accuracy=" in stderr
    assert "loss=" in stderr
    picture = tmp_path / "cnn_digits_small_seed0.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    for entry in entries:
        default = RATES[entry["optimizer"]]
        is_adamw = entry["optimizer"] == "adamw"
        assert entry["learning_rate"] == (0.004 if is_adamw else default)
        assert entry["num_steps"] == 8
        assert entry["compile_time_s"] > 0
        assert entry["step_time_s"] > 0
        assert entry["num_devices"] == 1
        assert [point["step"] for point in entry["history"]] == [0, 4, 8]
        # better than guessing after two epochs of 256 images
        assert entry["final_train_accuracy"] > 0.3, entry["optimizer"]
        moved = entry["share_of_layers_moved"]
        drops = entry["optimizer"] in drop.METHODS
        assert 0.25 <= moved < 1 if drops else moved == 1
    assert entries[0]["command"].startswith("python -m benchmarks.cnn --output")


@pytest.fixture
def _interruptible():
    """Children inherit an ignored SIGINT: make sure that it is not."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_keeps_finished_runs(tmp_path):
    process = start(
        tmp_path, "--optimizers", "adamw,optax_muon", "--limit", "256",
        "--epochs", "200", "--evaluations", "2",
    )  # fmt: skip
    while not (tmp_path / "cnn.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)  # the second run has just begun
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert [entry["optimizer"] for entry in lines(tmp_path)] == ["adamw"]
    assert "| adamw" in stdout
    assert "| optax_muon" not in stdout


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (["--optimizers", "adamw,sgd"], list(RATES)),
        (["--learning-rate", "sgd=0.1"], list(RATES)),
        (["--dataset", "imagenet"], ["digits", "mnist", "fashion_mnist", "cifar10"]),
        (["--model", "large"], ["small", "paper"]),
    ],
)
def test_unknown_names_list_the_known_ones(arguments, known, refusal):
    message = refusal(cnn.parse, arguments)
    assert all(name in message for name in known)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "0"],
        ["--batch-size", "-3"],
        ["--learning-rate", "adamw"],
        ["--learning-rate", "adamw=fast"],
        ["--target-accuracy", "97"],
    ],
)
def test_values_out_of_range_are_refused(arguments, refusal):
    assert f"{arguments[0]}: must" in refusal(cnn.parse, arguments)


def test_learning_rates_add_up():
    options = cnn.parse(
        ["--learning-rate", "adamw=1", "optax_muon=2", "--learning-rate", "adamw=3"]
    )
    assert dict(options.learning_rate) == {"adamw": 3.0, "optax_muon": 2.0}


def test_step_times_in_pairs(tmp_path, capsys):
    """`python -m benchmarks.cnn.step_time`: ratios are to the first optimizer."""
    output = ["--output", str(tmp_path), "--rounds", "2", "--batch-size", "8"]
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        assert step_time.main([*output, "--optimizers", "adamw,gluon"]) == 0
    entry = json.loads((tmp_path / "step_time.jsonl").read_text())
    assert list(entry["optimizers"]) == ["adamw", "gluon"]
    assert entry["optimizers"]["adamw"]["step_time_ratio"]["median"] == 1.0
    for measured in entry["optimizers"].values():
        assert measured["step_time_s"]["num_runs"] == 2
        assert measured["compile_time_s"] > 0
    out = capsys.readouterr().out
    assert "| adamw" in out
    assert "| gluon" in out
