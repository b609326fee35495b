"""The lines of `results/trust.jsonl`, and the table that they give.

A line is a family of faults: what was tried, on how many cases, how they ended. A loss
is a case that ended wrong in silence, without an answer, or in a bare error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import record

NAME = "trust"
HEADER = ("faults", "tried", "cases", "how they ended", "losses", "by")


def append(
    folder: Path,
    family: str,
    tried: str,
    outcomes: Mapping[str, int],
    *,
    losses: int,
    by: str,
    seed: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """Adds a family's line to `trust.jsonl`; the newest of a family is the one shown.

    Args:
        folder: Of the lines.
        family: One name for these faults.
        tried: What was done, in a few words.
        outcomes: Number of cases by how they ended, losses among them.
        losses: How many of the cases are losses.
        by: The test, or the command, that tries it again.
        seed: Of the cases.
        more: What else was measured, with units in the keys.

    Returns:
        The line.

    Raises:
        ValueError: If there are no cases, or fewer than losses.
    """
    num_cases = sum(outcomes.values())
    if not 0 <= losses <= num_cases or not num_cases:
        raise ValueError(f"`losses` must be among {num_cases} > 0 cases, got {losses}")
    entry = {
        "benchmark": NAME,
        "family": family,
        "tried": tried,
        "num_cases": num_cases,
        "outcomes": dict(outcomes),
        "losses": losses,
        "by": by,
        **more,
        **record.provenance(seed=seed),
    }
    record.append(folder / f"{NAME}.jsonl", entry)
    return entry


def newest(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each family, in the order of the first ones."""
    return list({entry["family"]: entry for entry in entries}.values())


def table(entries: Sequence[dict[str, Any]]) -> str:
    """One row for each family, and their sum."""
    chosen = newest(entries)
    rows = [HEADER, tuple(":---" for _ in HEADER), *map(row, chosen)]
    total = sum(entry["num_cases"] for entry in chosen)
    lost = sum(entry["losses"] for entry in chosen)
    rows.append(("all", "", f"{total:,}", "", f"{lost}", ""))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(entry: dict[str, Any]) -> tuple[str, ...]:
    """A family's cells."""
    ends = ", ".join(f"{count:,} {how}" for how, count in entry["outcomes"].items())
    cases, losses = f"{entry['num_cases']:,}", f"{entry['losses']}"
    by = f"`{entry['by']}`"
    return entry["family"], entry["tried"], cases, ends, losses, by
