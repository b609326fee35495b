"""Tables and pictures of EF21-Muon's measurements."""

from collections.abc import Sequence
from pathlib import Path


def show(folder: Path, parts: Sequence[str]) -> None:
    """Prints the tables and draws the pictures of these parts."""
