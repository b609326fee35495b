"""Command lines: their parser, and types of arguments.

A refused name is answered with the known ones. What can be
refused is refused before the first step, in one line and with status 2.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.common import record
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.record import RESULTS

# What options mean that many programs have; a program says what is particular to it.
HELP = {
    "--seed": "of weights, batches and draws",
    "--seeds": "of weights, batches and draws, a run each",
    "--steps": "train steps in a run",
    "--batch-size": "samples in a batch",
    "--length": "tokens of context",
    "--learning-rate": "peak learning rate",
    "--momentum": "weight of the old momentum",
    "--momenta": "weights of the old momentum to try",
    "--sampling": "which layers move",
    "--equal": "what is spent alike",
    "--families": "families of tests",
    "--model": "size or kind of the network",
    "--preset": "size of the network",
    "--dtype": "of weights and activations",
    "--data": "data set",
    "--dataset": "data set",
    "--optimizer": "what trains the network",
    "--optimizers": "what trains the network, a run each",
    "--methods": "what is compared, a run each",
    "--pairs": "compressors of workers and server",
    "--compressors": "what is compressed by",
    "--rates": "learning rates to try",
    "--factors": "multiples of the default learning rates to try",
    "--budgets": "seconds of training, a run each",
    "--evaluations": "how many, evenly spaced",
    "--validation": "windows that validate",
    "--validation-windows": "windows that validate",
    "--rounds": "turns that are timed",
    "--workers": "how many workers share a batch",
    "--trees": "trees of parameters",
    "--warm-down": "share of the steps in which the rate falls to 0",
    "--initial": "what momentum starts from, zeros or the first gradient",
    "--blocks": "blocks of the network",
    "--width": "of the network",
    "--heads": "of attention in a block",
}
SAYS_DEFAULT = re.compile(r"default(:| is)")
ALIKE = ("--data", "--dataset")  # either is taken wherever one is


class Help(argparse.HelpFormatter):
    """Argparse's, with each option's default, unless its help says that of itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default in (None, False, [], argparse.SUPPRESS) or SAYS_DEFAULT.search(text):
            return text
        shown = default if isinstance(default, list | tuple) else [default]
        words = [str(x) if str(x).isprintable() else repr(x) for x in shown]
        return f"{text} (default: {' '.join(words).replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """Argparse's, with one line where something is refused: --help has the rest.

    Every option has a help text, with its default; lists are taken as `a b` and as
    `a,b`; `--data` and `--dataset` are one.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings.setdefault("formatter_class", Help)
        super().__init__(*arguments, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Argparse's, with the help in `HELP` unless one is given."""
        if names[0].startswith("--"):
            settings.setdefault("help", HELP.get(names[0]))
        if names[0] in ALIKE:
            settings.setdefault("dest", names[0].removeprefix("--"))
            names = (*names, *(name for name in ALIKE if name not in names))
        return super().add_argument(*names, **settings)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Argparse's, after lists are taken apart at their commas.

        Values of the form `name=1,2` keep theirs, and so do choices that have some.
        """
        if action.nargs in ("+", "*"):
            whole = set(action.choices or ())
            parts = [
                [x] if "=" in x or x in whole else x.split(",") for x in arg_strings
            ]
            arg_strings = [part for found in parts for part in found]
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def new_parser(module: str, description: str) -> Parser:
    """A parser for `python -m module`, with the folder that its results go to."""
    parser = Parser(prog=f"python -m {module}", description=description)
    add_output(parser)
    return parser


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of results: `RESULTS`, which git ignores, unless told."""
    where = "folder of the result lines and pictures, which is made"
    parser.add_argument("--output", type=folder, default=str(RESULTS), help=where)


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


def rates_of(known: Iterable[str]) -> Callable[[str], tuple[str, list[float]]]:
    """A reader of `muon=0.01,0.02`, for one of these names."""
    names = list(known)

    def rates(text: str) -> tuple[str, list[float]]:
        name, _, values = text.partition("=")
        if name not in names:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(names)}")
        return name, [rate(value) for value in values.split(",")]

    return rates


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
