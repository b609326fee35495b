"""Command lines: their parser, and types of arguments.

A refused name is answered with the known ones. What can be
refused is refused before the first step, in one line and with status 2.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.common import record
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.record import RESULTS


class Parser(argparse.ArgumentParser):
    """Argparse's, with one line where something is refused: --help has the rest."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def new_parser(module: str, description: str) -> Parser:
    """A parser for `python -m module`, with the folder that its results go to."""
    parser = Parser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=folder, default=RESULTS, help="folder")
    return parser


def optimizer_names(text: str) -> list[str]:
    """Reads `muon,adamw`."""
    names = text.split(",")
    for name in names:
        known_optimizer(name)
    return names


def learning_rate(text: str) -> tuple[str, float]:
    """Reads `muon=0.02`."""
    name, _, value = text.partition("=")
    known_optimizer(name)
    return name, rate(value)


def known_optimizer(name: str) -> None:
    """Raises argparse's error, with the known names, for an unknown one."""
    if name not in OPTIMIZERS:
        raise argparse.ArgumentTypeError(
            f"unknown optimizer {name!r} (choose from {', '.join(OPTIMIZERS)})"
        )


def positive(text: str) -> int:
    """Reads a positive whole number."""
    if not is_whole(text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """Reads a whole number, 0 or more."""
    if not is_whole(text):
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """Reads a seed: a whole number below 2³¹."""
    if not is_whole(text):
        raise argparse.ArgumentTypeError(f"must be 0, …, 2³¹ − 1, got {text!r}")
    return int(text)


def is_whole(text: str) -> bool:
    """Whether these are ASCII digits, of a number of 31 bits."""
    digits = text.isascii() and text.isdecimal() and len(text) < 20
    return digits and int(text) < 2**31


def rate(text: str) -> float:
    """Reads a positive number."""
    return within(text, "must be a positive number", lambda x: 0.0 < x < math.inf)


def share(text: str) -> float:
    """Reads a number in (0, 1]."""
    return within(text, "must lie in (0, 1]", lambda x: 0.0 < x <= 1.0)


def momentum(text: str) -> float:
    """Reads a number in [0, 1)."""
    return within(text, "must lie in [0, 1)", lambda x: 0.0 <= x < 1.0)


def within(text: str, rule: str, holds: Callable[[float], bool]) -> float:
    """Reads a number for which a rule holds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not holds(value):
        raise argparse.ArgumentTypeError(f"{rule}, got {text!r}")
    return value


def folder(text: str) -> Path:
    """Reads a folder for results, and makes it.

    What a run has found is written at its end: that it can be is seen to before.
    """
    try:
        record.check_folder("path", Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def file_name(text: str) -> str:
    """Reads a name of files in a folder."""
    if not text or text in (".", "..") or set(text) & set("/\\\0"):
        raise argparse.ArgumentTypeError(f"must be a file's name, got {text!r}")
    return text


def recorded(path: Path) -> list[dict[str, Any]]:
    """The entries of a file of records; ValueError if it is none."""
    if not path.is_file():
        raise ValueError(f"`lines` must be a file, got {str(path)!r}")
    return record.read(path)


@contextmanager
def refusing(program: str) -> Iterator[None]:
    """Ends the program with one line and status 2 where settings or files are refused.

    For what comes before the first step; errors after it are no matter of settings.
    """
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        print(f"{program}: error: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
