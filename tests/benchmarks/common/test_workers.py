"""`benchmarks.common.workers`: processes that start, talk, and end together."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from benchmarks.common import workers

REPOSITORY = Path(workers.__file__).parents[2]
START = """
import json, os, sys, time
from pathlib import Path
from benchmarks.common import workers
workers.join()
import jax, jax.numpy as jnp
from jax.experimental import multihost_utils
rank = jax.process_index()
"""
SUM = """
from dropmuon_optax.counters.bytes import count_wire_bytes
mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
spec = jax.P("data")
f = lambda x: jax.lax.psum(x, "data")
f = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=jax.P()))
mine = jnp.full((1, 1 << 18), rank + 1.0)  # 1 MiB
x = multihost_utils.host_local_array_to_global_array(mine, mesh, spec)
counted = count_wire_bytes(f.lower(x).compile()).total
total = jax.block_until_ready(f(x))
before = workers.quiet_loopback_bytes()
with workers.Progress(10) as progress:
    for step in range(10):
        jax.block_until_ready(f(x))
        progress.update(step + 1, loss="1.5")
after = workers.quiet_loopback_bytes()
seen = None if before is None else (after - before) / 10
found = {"sum": float(total.addressable_data(0)[0, 0]), "counted": counted,
         "seen": seen, "devices": jax.device_count(), "argv": sys.argv[1:]}
Path(os.environ["FOLDER"], f"{rank}.json").write_text(json.dumps(found))
"""


@pytest.fixture
def program(tmp_path):
    """Writes a module that workers can run; returns what `launch` wants to know."""

    def write(code):
        (tmp_path / "program.py").write_text(START + code)
        paths = [tmp_path, REPOSITORY, *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        variables["FOLDER"] = str(tmp_path)
        return {"logs": tmp_path / "logs", "environment": variables}

    return write


def own_loopback():
    """A command that gives a process a loopback of its own; [] if that can't be."""
    command = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not shutil.which("unshare") or not shutil.which("ip"):
        return []
    works = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if works.returncode == 0 else []


def test_two_processes_share_a_sum_and_its_bytes_are_those_counted(program, tmp_path):
    options = program(SUM)
    alone = own_loopback()
    parent = (
        "from pathlib import Path; from benchmarks.common import workers; "
        f"workers.launch('program', ['--flag'], 2, logs=Path({str(options['logs'])!r}))"
    )
    done = subprocess.run(
        [*alone, sys.executable, "-c", parent],
        env={**os.environ, **options["environment"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "10/10" in done.stderr
    assert "loss=1.5" in done.stderr
    results = [json_of(tmp_path / f"{rank}.json") for rank in range(2)]
    for found in results:
        assert found["sum"] == 3.0
        assert found["devices"] == 2  # one for each, whatever this process has
        assert found["argv"] == ["--flag"]
        assert found["counted"] == 1 << 20  # 2(n−1)/n · 1 MiB
    seen = results[0]["seen"]
    if seen is None:
        pytest.skip("there is no /proc/net/dev to read the loopback's bytes from")
    # Framing and heartbeats; on a shared loopback also what others send.
    low, high = 2 * (1 << 20), 2.2 * (1 << 20) + 4096
    assert low <= seen <= (high if alone else 1e3 * high)


def test_a_worker_that_dies_ends_the_run(program):
    code = """
if rank == 1:
    print("about to fail", flush=True)
    os._exit(3)
multihost_utils.sync_global_devices("never")
"""
    options = program(code)
    start = time.monotonic()
    with pytest.raises(workers.WorkerError) as error:
        workers.launch("program", [], 2, **options)
    assert time.monotonic() - start < 60  # most of it is the start, on a slow machine
    assert "worker 1 died with exit code 3" in str(error.value)
    assert "about to fail" in str(error.value)
    assert "worker_1.log" in str(error.value)


def test_an_error_does_not_wait_for_the_others(program):
    code = """
if rank == 1:
    raise ValueError("a leaf is missing")
multihost_utils.sync_global_devices("never")
"""
    with pytest.raises(workers.WorkerError, match="a leaf is missing") as error:
        workers.launch("program", [], 2, **program(code))
    assert "worker 1 died with exit code 1" in str(error.value)


def test_a_worker_that_leaves_has_said_why(program):
    options = program('workers.leave(f"it: the disk of {rank % 1} is full")')
    with pytest.raises(workers.WorkerError) as error:
        workers.launch("program", [], 2, **options)
    assert str(error.value) == "it: the disk of 0 is full"  # both alike, said once


def json_of(path):

    return json.loads(path.read_text())


# -------------------------------------------------- without JAX in the processes


def sleepers(*seconds):
    code = "import sys, time; time.sleep(float(sys.argv[1]))"
    return [
        subprocess.Popen([sys.executable, "-c", code, str(s)], stdin=subprocess.PIPE)
        for s in seconds
    ]


@pytest.mark.parametrize(
    ("seconds", "deadline_s", "grace_s", "reason"),
    [
        ((60, 60), 0.5, 60.0, "deadline of 0.5 s has passed; worker 0 was still run"),
        ((0, 60), 60.0, 0.2, "another worker ended 0.2 s ago; worker 1 was still run"),
    ],
    ids=["deadline", "one that ends alone"],
)
def test_nobody_waits_forever(
    seconds, deadline_s, grace_s, reason, tmp_path, monkeypatch
):
    monkeypatch.setattr(workers, "GRACE_S", grace_s)
    for rank in range(2):
        workers.log_of(tmp_path, rank).write_text("")
    processes = sleepers(*seconds)
    with pytest.raises(workers.WorkerError, match=reason):
        workers.wait(processes, tmp_path, deadline_s)
    workers.end(processes)
    assert all(process.poll() is not None for process in processes)


def test_a_killed_worker_is_named_with_its_signal(tmp_path):
    workers.log_of(tmp_path, 0).write_text("one\ntwo\n")
    (process,) = sleepers(60)
    process.kill()
    with pytest.raises(workers.WorkerError, match="worker 0 died of SIGKILL") as error:
        workers.wait([process], tmp_path, 60.0)
    workers.end([process])
    assert str(error.value).endswith("    one\n    two")


def test_the_bar_shows_whole_lines_only(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_text('{"step": 3, "total": 9, "loss": "2.0"}\n{"step": 4, "to')
    bar = tqdm(file=io.StringIO())
    with path.open() as updates:
        workers.show(bar, updates)
        assert (bar.n, bar.total) == (3, 9)
        with path.open("a") as more:
            more.write('tal": 9, "loss": "1.5"}\n')
        workers.show(bar, updates)
    assert (bar.n, bar.postfix) == (4, "loss=1.5")
    bar.close()


def test_only_the_devices_flag_is_taken_from_the_workers(monkeypatch):
    flags = "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2"
    assert workers.DEVICES_FLAG.sub("", flags).split() == ["--xla_a=1", "--xla_b=2"]
    found = workers.settings(3)
    assert found[workers.NUM_PROCESSES] == "3"
    assert found[workers.ADDRESS] != workers.settings(3)[workers.ADDRESS]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (None, None),
        ("--xla_force_host_platform_device_count=8", None),
        (" --xla_force_host_platform_device_count=8 --xla_b=2", "--xla_b=2"),
    ],
)
def test_no_flags_are_no_variable(flags, expected, tmp_path, monkeypatch):
    # XLA takes blanks for the name of a file of flags, and dies of it.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if flags is not None:
        monkeypatch.setenv("XLA_FLAGS", flags)
    seen = {}

    def started(command, env, **rest):
        seen.update(env)
        raise OSError("far enough")

    monkeypatch.setattr(workers.subprocess, "Popen", started)
    with pytest.raises(OSError, match="far enough"):
        workers.launch("program", [], 1, logs=tmp_path)
    assert seen.get("XLA_FLAGS") == expected


def test_a_worker_that_dies_at_start_says_why(tmp_path):
    lines = ["F0000 why it died", *(f"@ 0x{i:x} frame" for i in range(40))]
    workers.log_of(tmp_path, 0).write_text("\n".join(lines))
    said = workers.obituary(tmp_path, 0, -6)
    assert said.startswith("worker 0 died of SIGABRT")
    assert "F0000 why it died" in said
    assert said.endswith("@ 0x27 frame")


def test_workers_end_with_the_process_that_launched_them():
    code = (
        "from benchmarks.common import workers; workers.follow_parent(); print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
