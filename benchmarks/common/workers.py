"""Several processes of one program on this machine, joined by `jax.distributed`.

`launch` starts `python -m <module>` several times, shows one progress bar, and ends all
processes as soon as one of them dies. `join` is the other side: the same module, on a
cluster that `jax.distributed` knows (Slurm, Open MPI, Kubernetes, Cloud TPU), is
started by the cluster instead, and joins without any of this.

Workers started here have one CPU device each and talk over loopback, by Gloo.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils
from tqdm import tqdm

from benchmarks.common import clusters, record
from benchmarks.common.clusters import ADDRESS, NUM_PROCESSES, RANK

PROGRESS, COMMAND = "DROPMUON_PROGRESS", "DROPMUON_COMMAND"  # set by `launch`
DEVICES_FLAG = re.compile(r"--xla_force_host_platform_device_count=\d+")
POLL_S = 0.1
GRACE_S = 60.0  # that the last worker may end after the first one has
SETTLE_S = 0.1  # until the interface has counted what was sent last
INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT
SAID = 74  # that of a worker whose last line is all there is to say: EX_IOERR
HEAD, TAIL = 5, 15  # lines of a dead worker's log that the error shows


class WorkerError(RuntimeError):
    """A worker died, or all of them took too long."""


def launch(
    module: str,
    arguments: Sequence[str],
    num_processes: int,
    *,
    logs: Path,
    label: str = "",
    deadline_s: float = 3600.0,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs `python -m module *arguments` in several processes until all have ended.

    Args:
        module: It calls `join`.
        arguments: Of its command line.
        num_processes: How many.
        logs: Empty folder for what they print, `worker_0.log`, …
        label: Stands in front of the progress bar.
        deadline_s: After so long all are ended.
        environment: More variables for the workers.

    Raises:
        WorkerError: If a worker's exit status is not 0, if the others don't follow one
            that has ended, or if the deadline passes; with the logs' ends. None runs.
    """
    logs.mkdir(parents=True, exist_ok=True)
    progress = logs / "progress.jsonl"
    progress.write_text("")
    common = {**os.environ, **(environment or {}), **settings(num_processes)}
    common |= {PROGRESS: str(progress), COMMAND: record.command()}
    # One device each. XLA takes blanks for the name of a file: no flags, no variable.
    flags = DEVICES_FLAG.sub("", common.pop("XLA_FLAGS", "")).strip()
    common |= {"XLA_FLAGS": flags} if flags else {}
    common.pop("JAX_NUM_CPU_DEVICES", None)
    processes = []
    with ExitStack() as stack:
        stack.callback(end, processes)
        for rank in range(num_processes):
            log = stack.enter_context(log_of(logs, rank).open("w"))
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env={**common, RANK: str(rank)},
                stdin=subprocess.PIPE,  # closes with this process: see `follow_parent`
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C is ours to handle
            )
            processes.append(process)
        bar = stack.enter_context(tqdm(desc=label, unit=" steps"))
        updates = stack.enter_context(progress.open())
        wait(processes, logs, deadline_s, lambda: show(bar, updates))


def settings(num_processes: int) -> dict[str, str]:
    """The variables by which processes of this machine find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return {
        ADDRESS: address,
        clusters.BIND_ADDRESS: address,  # and not all of the network
        NUM_PROCESSES: str(num_processes),
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }


def wait(
    processes: Sequence[subprocess.Popen],
    logs: Path,
    deadline_s: float,
    on_poll: Any = lambda: None,
) -> None:
    """Returns when all have ended well; WorkerError as soon as that can't be."""
    start = time.monotonic()
    first_end = None
    while True:
        codes = [process.poll() for process in processes]
        on_poll()
        if any(codes):
            ranks = [rank for rank, code in enumerate(codes) if code]
            ranks = [rank for rank in ranks if codes[rank] == SAID] or ranks
            ends = dict.fromkeys(obituary(logs, rank, codes[rank]) for rank in ranks)
            raise WorkerError("\n".join(ends))
        if all(code == 0 for code in codes):
            return
        now = time.monotonic()
        running = [rank for rank, code in enumerate(codes) if code is None]
        first_end = first_end or (now if 0 in codes else None)
        if now - start > deadline_s:
            reason = f"the deadline of {deadline_s:g} s has passed"
        elif first_end is not None and now - first_end > GRACE_S:
            reason = f"another worker ended {GRACE_S:g} s ago"
        else:
            time.sleep(POLL_S)
            continue
        raise WorkerError(
            "\n".join(f"{reason}; {obituary(logs, rank, None)}" for rank in running)
        )


def obituary(logs: Path, rank: int, code: int | None) -> str:
    """What is known of a worker that died, or (without a code) had to be ended."""
    path = log_of(logs, rank)
    how = "was still running"
    if code is not None and code < 0:
        how = f"died of {signal.Signals(-code).name}"
    elif code is not None:
        how = f"died with exit code {code}"
    lines = path.read_text(errors="replace").splitlines()
    if code == SAID and lines:
        return lines[-1]
    if len(lines) > HEAD + TAIL:  # XLA says why in the first lines, a stack follows
        lines = [*lines[:HEAD], "…", *lines[-TAIL:]]
    quoted = "\n".join(f"    {line}" for line in lines) or "    (nothing)"
    return f"worker {rank} {how}; from {path}:\n{quoted}"


def end(processes: Sequence[subprocess.Popen]) -> None:
    """Ends those that still run, by what none can catch."""
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def show(bar: tqdm, updates: Any) -> None:
    """Moves the bar to the last whole line that worker 0 has written."""
    place, newest = updates.tell(), None
    for line in updates.read().splitlines(keepends=True):
        if line.endswith("\n"):
            newest, place = json.loads(line), place + len(line)
    updates.seek(place)  # half a line is read again
    if newest is not None:
        bar.total = newest.pop("total")
        bar.n = newest.pop("step")
        bar.set_postfix(newest, refresh=False)
        bar.refresh()


def log_of(logs: Path, rank: int) -> Path:
    return logs / f"worker_{rank}.log"


def join() -> None:
    """Joins the other processes; before anything else is asked of JAX.

    Raises:
        ValueError: If there is no cluster, or a variable of it is wrong.
        RuntimeError: If the coordinator can't listen at its address.
    """
    sys.excepthook = die
    if is_launched():
        threading.Thread(target=follow_parent, daemon=True).start()
    clusters.initialize()


def is_launched() -> bool:
    """Whether all workers are processes of this machine, started by `launch`."""
    return PROGRESS in os.environ


def meet(name: str) -> None:
    """Waits for the others, before they exchange data after something long.

    Gloo gives up on a worker that is 30 s late. On a cluster this does nothing.
    """
    if is_launched():
        folder = Path(os.environ[PROGRESS]).parent
        (folder / f"{name}.{jax.process_index()}").touch()
        while len(list(folder.glob(f"{name}.*"))) < jax.process_count():
            time.sleep(POLL_S)


def die(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Ends a worker at once: in good order it would wait for the others, which wait."""
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)
    traceback.print_exception(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def leave(reason: str) -> NoReturn:
    """Ends a worker at once, for a reason that is no fault of the program."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(SAID)


def follow_parent() -> None:
    """Ends this worker when the process that launched it is gone, however it ended."""
    while os.read(0, 1):  # sys.stdin would keep a lock that Python needs at its end
        pass
    os._exit(1)


class Progress:
    """Worker 0's bar: drawn by the process that launched it, or on a cluster by itself.

    A context manager; on other workers it does nothing.
    """

    def __init__(self, total: int, initial: int = 0, label: str = ""):
        """Says how far the run goes, and from which step it comes."""
        self.total = total
        self.path = self.bar = None
        if jax.process_index() == 0 and is_launched():
            self.path = Path(os.environ[PROGRESS])
        elif jax.process_index() == 0:
            self.bar = tqdm(total=total, initial=initial, desc=label, unit=" steps")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, step: int, **values: str) -> None:
        """Shows how many steps were made, and what else is worth a look."""
        if self.path is not None:
            line = {"step": step, "total": self.total, **values}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if self.bar is not None:
            self.bar.set_postfix(values, refresh=False)
            self.bar.update(step - self.bar.n)


def loopback_bytes() -> int | None:
    """Bytes that this machine has sent to itself, all of it; None if it doesn't say."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return None
    rows = (line.split(":") for line in lines if ":" in line)
    found = (fields.split() for name, fields in rows if name.strip() == "lo")
    return next((int(fields[8]) for fields in found), None)


def quiet_loopback_bytes() -> int | None:
    """`loopback_bytes` while all workers wait (all call it); None on a cluster."""
    if not is_launched():
        return None
    multihost_utils.sync_global_devices("before the reading")
    time.sleep(SETTLE_S)
    seen = loopback_bytes()
    multihost_utils.sync_global_devices("after the reading")
    return seen
