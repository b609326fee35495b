"""Command lines: their parser, and types of arguments.

A refused name is answered with the known ones.
"""

import argparse
from pathlib import Path

from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.record import RESULTS


def new_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser for `python -m module`, with the folder that its results go to."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
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
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be NAME=VALUE with a number as value, got {text!r}"
        ) from None


def known_optimizer(name: str) -> None:
    """Raises argparse's error, with the known names, for an unknown one."""
    if name not in OPTIMIZERS:
        raise argparse.ArgumentTypeError(
            f"unknown optimizer {name!r} (choose from {', '.join(OPTIMIZERS)})"
        )


def positive(text: str) -> int:
    """Reads a positive whole number."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """Reads a number in (0, 1]."""
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"must lie in (0, 1], got {text!r}")
    return value
