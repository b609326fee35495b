"""Four processes over loopback: the same numbers, and an end to every one of them.

Claim: the same sets on every process at every step, replicas equal to the bit, and a
restart that goes on exactly. Where a process dies or hangs the others end with an error
within 110 s, mostly at once. Where the parent is interrupted or killed no process is
left, and Ctrl-C shows no traceback.

Command: python -m benchmarks.trust.hosts [--parts replicas deaths parents]
Device: CPU devices of this machine, one for each process; twenty minutes of a core.
Expected: three rows of the README beside this file, no losses.

That deaths and parents are noticed is seen on Linux, in /proc.
"""

import argparse
import collections
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import clusters, workers
from benchmarks.common.options import new_parser, positive
from benchmarks.trust import report
from benchmarks.trust.hosts_worker import OPTIMIZERS

NUM_PROCESSES = 4
WORKER = "benchmarks.trust.hosts_worker"
COMMAND = "python -m benchmarks.trust.hosts"
MARK = "DROPMUON_TRUST"  # variable by which processes of a run are found in /proc
LIMIT_S = clusters.HEARTBEAT_S + 10.0  # in which those without a parent are to end
ORPHANS_S = 60.0  # in which workers are to end; those that import JAX first do that
PATIENCE_S = 240.0  # for a start on a busy machine
EQUAL, OTHER = "equal on all processes", "different"
LEFT, TRACEBACK, WRONG_STATUS = "processes left", "a traceback", "another exit status"

# --------------------------------------------------------------- the numbers they find


def lines_of(folder: Path, name: str, turn: str, num_processes: int) -> list[list[str]]:
    """What each process wrote, line by line."""
    paths = [folder / f"{name}.{turn}.{rank}.jsonl" for rank in range(num_processes)]
    return [path.read_text().splitlines() for path in paths]


def compare(first: list[list[str]], again: list[list[str]]) -> Mapping[str, int]:
    """Steps whose lines are alike on all processes, and those after a restart."""
    found = collections.Counter()
    for lines in zip(*first, strict=True):
        found[EQUAL if len(set(lines)) == 1 else OTHER] += 1
    for lines in again:
        same = lines == first[0][len(first[0]) - len(lines) :] and lines
        found["restarts equal to the bit" if same else OTHER] += 1
    return found


def replicas(options: argparse.Namespace) -> None:
    """The same run whole, and again in other processes from its middle."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, name) for name in ("whole", "restarted")]
        for folder, more in zip(folders, ([], ["--resume"]), strict=True):
            if more:
                shutil.copytree(folders[0] / "kept", folder / "kept")
            launch(folder, "--steps", str(options.steps), *more)
        outcomes = collections.Counter()
        for name in OPTIMIZERS:
            whole, restarted = (
                lines_of(folder, name, "first", NUM_PROCESSES) for folder in folders
            )
            outcomes.update(compare(whole, restarted))
    report.append(
        options.output,
        "four processes: numbers",
        "sets, replicas and restarts of Drop-Muon (sets drawn on the host, on the "
        "device) and EF21-Muon, by digests at every step",
        outcomes,
        losses=outcomes[OTHER],
        by=f"{COMMAND} --parts replicas",
    )


def launch(folder: Path, *arguments: str) -> None:
    folder.mkdir(exist_ok=True)
    logs = folder / "logs"
    workers.launch(WORKER, [str(folder), *arguments], NUM_PROCESSES, logs=logs)


# ------------------------------------------------------------- one that dies, or hangs


def deaths(options: argparse.Namespace) -> None:
    """Processes without a parent, as on a cluster; one of them ends or stops."""
    outcomes, slowest_s = collections.Counter(), 0.0
    for victim in (0, NUM_PROCESSES - 1):
        for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
            time_s, left = others_end(victim, how)
            slowest_s = max(slowest_s, time_s)
            kind = "hang" if left else "the others ended with an error"
            outcomes[kind] += NUM_PROCESSES - 1
            print(f"process {victim}, {how.name}: {time_s:.1f} s, {left} left")
    report.append(
        options.output,
        "four processes: one dies or hangs",
        "SIGKILL, SIGTERM, SIGSTOP to the first or the last in training, without a "
        f"launcher; the others are to end within {LIMIT_S:g} s",
        outcomes,
        losses=outcomes["hang"],
        by=f"{COMMAND} --parts deaths",
        slowest_s=slowest_s,
    )


def others_end(victim: int, how: signal.Signals) -> tuple[float, int]:
    """Seconds until the others have ended with an error, and how many have not."""
    with tempfile.TemporaryDirectory() as temporary:
        processes = start_alone(Path(temporary))
        try:
            steps = Path(temporary, f"drop.first.{victim}.jsonl")
            wait_until(lambda: steps.exists() and steps.stat().st_size > 1000)
            processes[victim].send_signal(how)
            start = time.monotonic()
            others = [p for p in processes if p is not processes[victim]]
            while any(p.poll() is None for p in others):
                if time.monotonic() - start > LIMIT_S:
                    break
                time.sleep(workers.POLL_S)
            time_s = time.monotonic() - start
            return time_s, sum(not p.poll() for p in others)  # running, or no error
        finally:
            workers.end(processes)


def start_alone(folder: Path) -> list[subprocess.Popen]:
    """Processes as a cluster starts them: no parent follows them."""
    common = {**os.environ, **workers.settings(NUM_PROCESSES)}
    command = [sys.executable, "-m", WORKER, str(folder), "--steps", "100000"]
    processes = []
    for rank in range(NUM_PROCESSES):
        with workers.log_of(folder, rank).open("w") as log:
            environment = {**common, workers.RANK: str(rank)}
            processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            )
    return processes


# ----------------------------------------------------------------- a parent that ends


def parents(options: argparse.Namespace) -> None:
    """`ef21_workers --processes 4`, whose parent is interrupted, ended, killed."""
    outcomes = collections.Counter()
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for delay_s in (0.0, 2.0, 8.0, 20.0):  # after the first worker was started
            ended = end_of_parent(how, delay_s)
            outcomes[ended] += 1
            print(f"{how.name} after {delay_s:g} s: {ended}")
    report.append(
        options.output,
        "four processes: their parent is ended",
        "SIGINT, SIGTERM, SIGKILL to `ef21_workers --processes 4`, up to 20 s after "
        f"its first worker's start; its workers are to end within {ORPHANS_S:g} s",
        outcomes,
        losses=sum(outcomes[kind] for kind in (LEFT, TRACEBACK, WRONG_STATUS)),
        by=f"{COMMAND} --parts parents",
    )


def end_of_parent(how: signal.Signals, delay_s: float) -> str:
    """What an ended parent leaves."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, "text")
        data.mkdir()
        (data / "input.txt").write_text("abcdefghij" * 500)
        command = [sys.executable, "-m", "benchmarks.ef21_workers", "--dataset", "text"]
        command += ["--processes", str(NUM_PROCESSES), "--preset", "nano"]
        command += ["--length", "8", "--steps", "100000", "--output", temporary]
        variables = {MARK: mark, "DROPMUON_DATA": temporary}
        variables["TMPDIR"] = temporary  # where its logs are left
        parent = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: len(marked(mark)) > 1)
        time.sleep(delay_s)
        parent.send_signal(how)
        _, errors = parent.communicate()
        try:
            wait_until(lambda: not marked(mark), ORPHANS_S)
        except TimeoutError:
            for pid in marked(mark):
                os.kill(pid, signal.SIGKILL)
            return LEFT
    expected = workers.INTERRUPTED if how is signal.SIGINT else -how
    if parent.returncode != expected:
        return WRONG_STATUS
    return TRACEBACK if "Traceback" in errors else "no process left, no traceback"


def marked(mark: str) -> list[int]:
    """The processes that have this mark in their environment."""
    found, wanted = [], f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def wait_until(holds: Any, limit_s: float = PATIENCE_S) -> None:
    """TimeoutError if that takes too long."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > limit_s:
            raise TimeoutError(f"nothing in {limit_s:g} s")
        time.sleep(workers.POLL_S)


PARTS = {"replicas": replicas, "deaths": deaths, "parents": parents}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = new_parser("benchmarks.trust.hosts", "Ends processes, and looks.")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--steps", type=positive, default=200)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    for name in options.parts:
        PARTS[name](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
