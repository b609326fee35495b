"""`python -m benchmarks.accelerator`: all of it, tiny; and what interrupts it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.accelerator import __main__ as accelerator
from benchmarks.accelerator import figures, pictures, plots, process, report
from benchmarks.common import record, timing

ROOT = Path(__file__).parents[3]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that starts the command, with tiny sizes."""
    monkeypatch.delenv("DROPMUON_DATA", raising=False)
    cache = jax.config.jax_compilation_cache_dir
    started = []

    def start(*arguments, module="benchmarks.accelerator"):
        path = tmp_path / "lines.jsonl"
        words = ["--scale", "tiny", "--output", str(path), *arguments]
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, path

    yield start
    for each in started:
        each.kill()
        each.communicate()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_whole_command_leaves_a_line_for_each_figure(start, capsys):
    running, path = start()
    printed, said = running.communicate(timeout=280)
    assert running.returncode == 0, said[-3000:]
    lines = lines_of(path)
    for line in lines:
        check_line(line)
    assert list(dict.fromkeys(line["part"] for line in lines)) == [*accelerator.PARTS]
    skipped = [line for line in lines if line["status"] == "skipped"]
    assert {line["figure"].partition(":")[0] for line in skipped} == {"cifar10"}
    assert len(skipped) == len([x for x in lines if x["figure"].startswith("cifar10")])
    for title, table in ((report.title_of(lines[0]), report.table(lines)),):
        assert title in printed
        assert table in printed
    assert "digits, same steps" in printed
    assert "digits, same time" in printed
    picture = path.with_suffix(".png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    picture.unlink()
    assert accelerator.main(["--report", "--output", str(path)]) == 0
    assert report.table(lines) in capsys.readouterr().out
    assert picture.exists()


def check_line(line):
    assert line["benchmark"] == "accelerator"
    assert line["status"] in {"measured", "skipped"}, line["reason"]
    assert (line["reason"] is None) == (line["status"] == "measured")
    assert line["device_kind"] == jax.devices()[0].device_kind
    assert line["jax_version"] == jax.__version__
    assert line["commit"] == record.git("rev-parse", "HEAD")
    assert line["dtype"] in ("float32", "bfloat16")
    assert line["scale"] == "tiny"
    assert "benchmarks.accelerator --scale tiny" in line["command"]
    assert 0 <= line["time_s"] <= line["elapsed_s"]
    if line["status"] == "measured":
        assert plausible(line["measured"])


def plausible(measured):
    """Times and sizes are positive numbers; there is at least one."""
    flat = jax.tree_util.tree_flatten_with_path(measured)[0]
    found = 0
    for path, leaf in flat:
        name = jax.tree_util.keystr(path)
        assert not isinstance(leaf, float) or math.isfinite(leaf), name
        if "time_s" in name and "num_runs" not in name:
            assert leaf > 0, name
            found += 1
    return found > 0


BROKEN = """
import os
import sys
from benchmarks.accelerator import __main__ as main
from benchmarks.accelerator import compression, updates

def fail():
    raise MemoryError("RESOURCE_EXHAUSTED: it said")

def die():
    print("last words", file=sys.stderr, flush=True)
    os.abort()

def figures(scale):
    found = whole(scale)[:1]
    fail_first = found[0]._replace(name="fails", measure=fail)
    return [fail_first, *found, found[0]._replace(name="dies", measure=die),
            found[0]._replace(name="after")]

whole, others = updates.figures, compression.figures
updates.figures = figures
compression.figures = lambda scale: others(scale)[:1]

if __name__ == "__main__":
    raise SystemExit(main.main())
"""


def test_what_fails_leaves_the_others_lines(start, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    parts = ["--parts", "compression", "updates"]
    running, path = start(*parts, module="broken")
    printed, said = running.communicate(timeout=280)
    assert running.returncode == accelerator.FAILED, said[-3000:]
    lines = lines_of(path)
    assert [(line["figure"], line["status"]) for line in lines] == [
        ("fails", "failed"),
        ("tiny", "measured"),
        ("dies", "failed"),
        ("after", "skipped"),
        ("matrix 16 × 32", "measured"),
    ]
    reasons = [line["reason"] for line in lines]
    assert reasons[0] == "MemoryError: RESOURCE_EXHAUSTED: it said"
    assert "SIGABRT" in reasons[2]
    assert "last words" in reasons[2]
    assert reasons[3] == "its process has died before"
    assert "failed: MemoryError" in printed


def test_time_bounds_the_whole_and_what_is_left_out_is_said(start):
    begun = time.monotonic()
    running, path = start("--minutes", "0.1")
    _, said = running.communicate(timeout=120)
    assert time.monotonic() - begun < 60  # a second, on a machine with other work
    assert running.returncode == 0, said[-3000:]
    lines = lines_of(path)
    assert {line["status"] for line in lines} <= {"skipped", "measured"}
    assert {line["part"] for line in lines} == {*accelerator.PARTS}
    reasons = [line["reason"] for line in lines if line["status"] == "skipped"]
    assert all(reason.startswith(process.NO_TIME) for reason in reasons)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interruption_loses_no_line(number, start):
    running, path = start("--parts", "updates", "cutoffs")
    while not path.exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    children = children_of(running.pid)
    assert children
    running.send_signal(number)
    printed, said = running.communicate(timeout=60)
    lines = lines_of(path)
    assert lines[0]["status"] == "measured"
    if number == signal.SIGKILL:
        assert running.returncode == -number
        assert all(line["status"] == "measured" for line in lines)
    else:
        assert running.returncode == 128 + number, said[-3000:]
        assert lines[-1]["part"] == "cutoffs"
        assert lines[-1]["reason"] == process.INTERRUPTED
        assert report.table(lines) in printed
    deadline = time.monotonic() + 60
    while any(map(is_alive, children)):
        assert time.monotonic() < deadline, "a child has outlived the command"
        time.sleep(0.05)


def children_of(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children")
    if not found.exists():
        pytest.skip("the system doesn't list children")
    return found.read_text().split()


def is_alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_a_cpu_is_refused_for_full_sizes(tmp_path):
    path = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "benchmarks.accelerator", "--output", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    (line,) = [x for x in ended.stderr.splitlines() if "error: " in x]
    assert "JAX sees no accelerator" in line
    assert not path.exists()


def test_the_parent_leaves_the_device_to_its_children():
    program = """
import benchmarks.accelerator.__main__
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def exhausted():
    return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")


def test_a_batch_is_halved_until_it_fits():
    built, tried = [], []

    def attempt(base):
        tried.append(base)
        if base > 5:
            raise exhausted()
        return {"base": base}

    fitted = figures.Fitted(16, lambda size: built.append(size) or size)
    expected = {"batch_size": 4, "num_halvings_of_batch": 2, "base": 4}
    assert fitted.with_base(attempt) == expected
    assert fitted.with_base(attempt) == expected
    assert built == [16, 8, 4]
    assert tried == [16, 8, 4, 4]
    with pytest.raises(jax.errors.JaxRuntimeError, match="EXHAUSTED"):
        figures.Fitted(2, lambda size: size).with_base(never_fits)


def never_fits(base):
    raise exhausted()


def test_other_errors_are_not_met_by_a_smaller_batch():
    def attempt(base):
        raise jax.errors.JaxRuntimeError("INTERNAL: it broke")

    with pytest.raises(jax.errors.JaxRuntimeError, match="it broke"):
        figures.Fitted(8, lambda size: size).with_base(attempt)


@pytest.mark.parametrize(
    ("bytes_limit", "expected"), [(None, "a"), (12e9, "a"), (16e9, "b"), (80e9, "c")]
)
def test_choices_by_memory(bytes_limit, expected, monkeypatch):
    monkeypatch.setattr(figures, "memory_bytes", lambda: bytes_limit)
    assert figures.by_memory({0.0: "a", 14.0: "b", 60.0: "c"}) == expected


def test_the_stand_in_has_the_shape_of_mnist_and_shares_no_digit():
    dataset = pictures.stand_in()
    assert dataset.train_images.shape == (60_000, 28, 28, 1)
    assert dataset.validation_images.shape == (10_000, 28, 28, 1)
    # Without noise an image is a digit's pixels, each nine times, in a frame of zeros.
    rng = np.random.default_rng(0)
    digit = rng.standard_normal((1, 8, 8, 1)).astype("float32")
    labels = np.array([7], "int32")
    many, own = pictures.enlarged(digit, labels, 2_000, rng)
    assert set(own) == {7}
    places = np.zeros((2_000, 5, 5))
    block = np.kron(digit[0, :, :, 0], np.ones((3, 3)))
    for i in range(5):
        for j in range(5):
            part = many[:, i : i + 24, j : j + 24, 0] - block
            places[:, i, j] = np.square(part).mean(axis=(1, 2))
    nearest = places.reshape(2_000, 25).min(axis=1)
    np.testing.assert_allclose(nearest, pictures.NOISE**2, rtol=0.3)
    where = np.bincount(places.reshape(2_000, 25).argmin(axis=1), minlength=25)
    assert where.min() > 40  # of 80 expected at each place


def test_missing_images_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("DROPMUON_DATA", str(tmp_path))
    with pytest.raises(figures.UnmeasuredError, match=r"cifar-10.*is missing"):
        pictures.load("cifar10")
    monkeypatch.setattr(pictures, "NUM_TRAIN", 10)
    monkeypatch.setattr(pictures, "NUM_VALIDATION", 5)
    dataset, said = pictures.load("mnist")
    assert dataset.train_labels.shape == (10,)
    assert "digits of scikit-learn" in said
    assert "is missing" in said
    monkeypatch.delenv("DROPMUON_DATA")
    with pytest.raises(figures.UnmeasuredError, match="DROPMUON_DATA is not set"):
        pictures.load("fashion_mnist")


def line(figure, status, time_s=1.0, **changes):
    quartiles = timing.Quartiles(time_s, time_s, time_s, 3)._asdict()
    measured = {
        "optimizers": {
            "optax.adamw": {
                "update_time_s": quartiles,
                "update_time_ratio": quartiles,
                "compile_time_s": 2.0,
            }
        }
    }
    return {
        "part": "updates",
        "figure": figure,
        "dtype": "float32",
        "status": status,
        "reason": None if status == "measured" else "no time left",
        "time_s": 3.0,
        "measured": measured if status == "measured" else {},
        "scale": "full",
        "run": "now",
        "device_kind": "A",
        "jax_version": "1",
        **changes,
    }


def test_the_newest_measurement_counts_and_none_hides_one():
    lines = [
        line("a", "measured", 0.5),
        line("b", "failed"),
        line("a", "measured", 0.25),
        line("a", "skipped"),
        line("b", "skipped"),
        line("a", "measured", 0.125, device_kind="B"),
    ]
    groups = report.grouped(lines)
    assert list(groups) == ["A, jax 1", "B, jax 1"]
    assert groups["A, jax 1"] == [lines[2], lines[4]]
    shown = report.table(groups["A, jax 1"])
    assert "250 ms" in shown
    assert "4.00 (4.00 … 4.00) times faster" in shown
    assert "skipped: no time left" in shown


def run_line(method, rate, accuracy, protocol="same steps", run="2", seed=0):
    measured = {
        "dataset": "d",
        "method": method,
        "learning_rate": rate,
        "final_validation_accuracy": accuracy,
        "protocol": protocol,
        "seed": seed,
    }
    found = line(
        f"{method} {rate} {protocol} {seed}", "measured", part="images", run=run
    )
    return {**found, "measured": measured}


def test_each_method_is_shown_at_its_best_rate_of_the_newest_run():
    lines = [
        run_line("muon", 0.3, 0.99, run="1"),
        run_line("muon", 0.1, 0.9),
        run_line("muon", 0.2, 0.8),
        run_line("uniform", 0.1, 0.7),
        run_line("uniform", 0.2, 0.75),
        run_line("muon", 0.1, 0.95, "same time"),
        run_line("uniform", 0.2, 0.6, "same time"),
        run_line("muon", 0.1, 0.91, seed=1),
    ]
    found = plots.best_runs(lines)
    assert found == [lines[i]["measured"] for i in (1, 4, 5, 6, 7)]
    assert plots.best_runs([]) == []
