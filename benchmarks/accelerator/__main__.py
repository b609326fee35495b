"""All that this project says was not measured on a GPU, in under nine minutes.

Claim: none yet. It was not run on a GPU; the README beside this file says what each
figure will say.

Command: python -m benchmarks.accelerator [--minutes 8.8]
    [--parts updates cutoffs images tokens compression] [--output accelerator.jsonl]
Device: one GPU of 16 GB or more. `--scale tiny` runs all of it on a CPU, in a minute,
to see that it works: its figures say nothing.
Expected: one JSON line for each figure, as soon as it is known; a table and a picture,
which --report makes again from the lines.

Each part runs in a process of its own and has a share of the time; what one leaves the
next ones get. The exit status is 1 if a figure failed, 128 and the signal's number
after a signal, and 0 where figures were left out for want of time: their lines say so.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm import tqdm

from benchmarks.accelerator import report
from benchmarks.accelerator.figures import SCALES
from benchmarks.accelerator.process import (
    INTERRUPTED,
    NO_TIME,
    WHOLE,
    Outcome,
    Part,
    Watch,
)
from benchmarks.common import record
from benchmarks.common.options import Parser, rate, recorded, refusing

# Most valuable first; shares of the time, as far as the parts are run.
PARTS = {"updates": 30, "cutoffs": 18, "images": 25, "tokens": 17, "compression": 10}
REPORT_S = 5.0  # kept for table and picture
GRACE = 0.25  # of its share, that a part may take longer for a figure it has begun
FAILED = 1


class Writer:
    """Writes lines, each as soon as it is known, and counts failures."""

    def __init__(self, options: argparse.Namespace, bar: tqdm, signals: list[int]):
        """Nothing is written yet; `signals` are those that came."""
        self.options, self.bar, self.signals = options, bar, signals
        self.begun, self.num_failed = monotonic(), 0
        self.run = datetime.now(UTC).isoformat(timespec="seconds")
        self.origin: dict[str, Any] = {"device_kind": None, "jax_version": None}
        self.origin["commit"] = record.git("rev-parse", "HEAD")

    def write(self, part: str, outcome: Outcome) -> None:
        """One line."""
        line = {
            "benchmark": "accelerator",
            "part": part,
            **outcome._asdict(),
            "scale": self.options.scale,
            "run": self.run,
            "elapsed_s": monotonic() - self.begun,
            **self.origin,
            "command": record.command(),
        }
        record.append(self.options.output, line)
        self.num_failed += outcome.status == "failed"
        self.bar.write(report.headline(line))

    def show(self, part: Part) -> None:
        """Moves the bar, which is one of time."""
        self.bar.set_description(part.name, refresh=False)
        figure = part.current.figure if part.current else "starting"
        self.bar.set_postfix_str(figure, refresh=False)
        self.bar.n = min(self.bar.total, round(monotonic() - self.begun))
        self.bar.refresh()

    def check(self, part: Part) -> None:
        """Takes what lines say of device and versions; a CPU is for tiny figures."""
        self.origin = part.origin
        if self.options.scale == "full" and part.origin["platform"] == "cpu":
            with refusing("accelerator"):
                raise ValueError(
                    "JAX sees no accelerator, only a CPU (on an NVIDIA GPU, "
                    "`pip install -U 'jax[cuda12]'`); --scale tiny is for a CPU"
                )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    if options.report:
        with refusing("accelerator"):
            lines = recorded(options.output)
        report.show(options.output, lines)
        return 0
    seconds = 60 * options.minutes
    with tqdm(total=round(seconds), unit="s") as bar, noting_signals() as signals:
        writer = Writer(options, bar, signals)
        measure_all(options, writer, writer.begun + seconds - REPORT_S)
    report.show(options.output, record.read(options.output))
    print(f"\nlines: {options.output}")
    if signals:
        return 128 + signals[0]
    return FAILED if writer.num_failed else 0


def measure_all(options: argparse.Namespace, writer: Writer, end: float) -> None:
    """Runs the parts, in the order of `PARTS`."""
    names = [name for name in PARTS if name in options.parts]
    watch = Watch(writer.show, writer.check, stopped=lambda: bool(writer.signals))
    for number, name in enumerate(names):
        now = monotonic()
        share = PARTS[name] / sum(PARTS[later] for later in names[number:])
        deadline = now + share * max(0.0, end - now)
        limit = min(end, deadline + GRACE * (deadline - now))
        reason = INTERRUPTED if writer.signals else NO_TIME if now >= end else None
        if reason:
            writer.write(name, Outcome(WHOLE, "", "skipped", reason, 0.0, {}))
            continue
        for outcome in Part(name).run(options.scale, deadline, limit, watch):
            writer.write(name, outcome)


@contextmanager
def noting_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted, and looked for between two messages of a part.

    Where they are raised they could fall between a figure and its line.
    """
    found: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [
        signal.signal(number, lambda number, frame: found.append(number))
        for number in numbers
    ]
    try:
        yield found
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; unknown names end the program with the known ones."""
    parser = Parser(
        prog="python -m benchmarks.accelerator",
        description="Measures on one GPU what was not measured on one.",
    )
    add = parser.add_argument
    add("--minutes", type=rate, default=8.8, help="for all of it")
    add("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="which")
    add("--scale", choices=SCALES, default="full", help="tiny: for a CPU, a check")
    add("--output", type=lines_file, help=f"lines; the default is {default_of('full')}")
    add("--report", action="store_true", help="measure nothing: show the lines")
    options = parser.parse_args(arguments)
    options.output = options.output or default_of(options.scale)
    return options


def default_of(scale: str) -> Path:
    """Tiny figures say nothing, and aren't kept."""
    if scale == "full":
        return record.RESULTS / "accelerator.jsonl"
    return Path(tempfile.gettempdir()) / "accelerator_tiny.jsonl"


def lines_file(text: str) -> Path:
    """Reads a file for lines, and makes its folder: what is in it are lines."""
    path = Path(text)
    try:
        if not path.name or "\0" in text or path.is_dir():
            raise ValueError(f"`lines` must be a file, got {text!r}")
        record.check_folder("path", path.parent)
        if path.exists():
            recorded(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


if __name__ == "__main__":
    sys.exit(main())
