"""A part in a process of its own, so that nothing that ends it ends the others.

Memory that is exhausted, an abort of the compiler, a figure that takes for ever: the
parent goes on, and has a fresh device. The child only measures and says what it found;
the parent alone writes.
"""

import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from benchmarks.accelerator.figures import Figure, UnmeasuredError

POLL_S = 0.2
END_S = 5.0  # that a process may take to end after its last word
REASON_LENGTH = 500  # characters
# No bars of its own; most of the memory, where JAX would take three quarters.
ENVIRONMENT = {"TQDM_DISABLE": "1", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
NO_TIME, INTERRUPTED = "no time left", "interrupted"
WHOLE = "(all)"  # in place of a figure's name where they aren't known


class Outcome(NamedTuple):
    """What became of a figure."""

    figure: str
    dtype: str
    status: str  # measured, skipped, failed
    reason: str | None  # why it isn't measured
    time_s: float  # that it took, compilation included
    measured: dict[str, Any]


class Planned(NamedTuple):
    """A figure that is still to be had."""

    figure: str
    dtype: str


class Watch(NamedTuple):
    """What the parent does while a part runs."""

    show: Callable[["Part"], None]  # several times a second
    check: Callable[["Part"], None]  # when device and figures are known
    stopped: Callable[[], bool]  # whether all is to end now


# ------------------------------------------------------------------------- the parent


class Part:
    """A part that runs, as the parent sees it.

    Attributes:
        planned: Its figures, once the child has said them.
        origin: What their lines say of device and versions.
        outcomes: Those of the figures so far.
        current: The figure that is measured now, if any.
    """

    def __init__(self, name: str):
        """Starts nothing yet."""
        self.name = name
        self.planned: list[Planned] = []
        self.origin: dict[str, Any] = {}
        self.outcomes: list[Outcome] = []
        self.current: Planned | None = None
        self.begun = monotonic()

    def run(
        self, scale: str, deadline: float, limit: float, watch: Watch
    ) -> Iterator[Outcome]:
        """Yields each figure's outcome as soon as it is known; all of them at the end.

        Args:
            scale: Of `figures.SCALES`.
            deadline: No figure begins after it; by `time.monotonic`.
            limit: When the child is ended, whatever it does.
            watch: What the parent does meanwhile.
        """
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            process = context.Process(
                target=serve, args=(self.name, scale, deadline, sender, log)
            )
            with environment(ENVIRONMENT):
                process.start()
            sender.close()
            try:
                yield from self.follow(receiver, limit, watch)
                if watch.stopped():
                    reason = INTERRUPTED
                elif monotonic() >= limit:
                    reason = f"{NO_TIME}: its process was ended"
                else:
                    process.join(END_S)
                    reason = obituary(process.exitcode, log)
                yield from self.rest(reason)
            finally:
                process.kill()
                process.join()
                receiver.close()

    def follow(self, receiver: Any, limit: float, watch: Watch) -> Iterator[Outcome]:
        """What the child says, until it ends, or is to; to the last word."""
        try:
            while monotonic() < limit and not watch.stopped():
                watch.show(self)
                if receiver.poll(POLL_S):
                    yield from self.hear(receiver.recv(), watch)
            while receiver.poll():
                yield from self.hear(receiver.recv(), watch)
        except EOFError:
            return

    def hear(self, message: tuple[str, Any], watch: Watch) -> Iterator[Outcome]:
        """One message."""
        kind, content = message
        if kind == "plan":
            self.origin, planned = content
            self.planned = [Planned(*each) for each in planned]
            watch.check(self)
        elif kind == "begin":
            self.current, self.begun = Planned(*content), monotonic()
        else:
            yield self.note(Outcome(*content))

    def note(self, outcome: Outcome) -> Outcome:
        """Remembers what became of a figure, and returns it."""
        self.current = None
        self.outcomes.append(outcome)
        return outcome

    def rest(self, reason: str) -> Iterator[Outcome]:
        """The figures that the child didn't come to, or has not ended.

        What the process was at when it died of itself is the figure that failed.
        """
        ended = reason == INTERRUPTED or reason.startswith(NO_TIME)
        current, time_s = self.current, monotonic() - self.begun
        known = {(outcome.figure, outcome.dtype) for outcome in self.outcomes}
        if not self.planned:
            status = "skipped" if ended else "failed"
            yield self.note(Outcome(WHOLE, "", status, reason, time_s, {}))
        for planned in self.planned:
            if planned in known:
                continue
            if planned == current:
                status = "skipped" if ended else "failed"
                yield self.note(Outcome(*planned, status, reason, time_s, {}))
            else:
                why = reason if ended else "its process has died before"
                yield self.note(Outcome(*planned, "skipped", why, 0.0, {}))


def obituary(code: int | None, log: Path) -> str:
    """How a process ended, and its last words."""
    how = f"exit code {code}"
    if code is not None and code < 0:
        how = signal.Signals(-code).name
    said = log.read_text(errors="replace").strip() if log.exists() else ""
    return f"its process died ({how}): {said[-REASON_LENGTH:]}"


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables that aren't set, for a child to be started here."""
    added = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


# -------------------------------------------------------------------------- the child


def serve(part: str, scale: str, deadline: float, sender: Any, log: Path) -> None:
    """Measures a part's figures one by one, and says what became of each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=follow_parent, daemon=True).start()
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    from benchmarks.common import record  # JAX, which the parent's device is free of

    module = importlib.import_module(f"benchmarks.accelerator.{part}")
    figures = module.figures(scale)
    plan = [(figure.name, figure.dtype) for figure in figures]
    sender.send(("plan", (record.provenance(seed=0), plan)))
    for figure in figures:
        sender.send(("begin", (figure.name, figure.dtype)))
        sender.send(("outcome", tuple(outcome_of(figure, deadline))))
    sender.close()


def follow_parent() -> None:
    """Ends this process when its parent is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def outcome_of(figure: Figure, deadline: float) -> Outcome:
    """Measures a figure if there is time for it."""
    begun = monotonic()
    if begun > deadline:
        return Outcome(figure.name, figure.dtype, "skipped", NO_TIME, 0.0, {})
    status, reason, measured = "measured", None, {}
    try:
        measured = figure.measure()
        json.dumps(measured, allow_nan=False)
    except UnmeasuredError as why:
        status, reason, measured = "skipped", str(why), {}
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"[:REASON_LENGTH]
        status, reason, measured = "failed", said, {}
    time_s = monotonic() - begun
    return Outcome(figure.name, figure.dtype, status, reason, time_s, measured)
