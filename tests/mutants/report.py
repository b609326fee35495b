"""The table of mutants by package, from result lines."""

import collections
import math
from typing import Any


def table(entries: list[dict[str, Any]]) -> str:
    """A row for each package: how many there were, and how many tests saw."""
    counts: collections.Counter = collections.Counter()
    for entry in {(e["file"], e["index"]): e for e in entries}.values():
        for package in (entry["file"].split("/")[1], "all"):
            counts[package, "mutants"] += 1
            counts[package, "killed"] += not entry["survived"]
    rows = [("package", "mutants", "killed", "95 % interval")]
    rows.append((":---", "---:", "---:", "---:"))
    packages = sorted({package for package, _ in counts}, key=lambda x: (x == "all", x))
    for package in packages:
        number, killed = counts[package, "mutants"], counts[package, "killed"]
        low, high = interval(killed, number)
        rows.append(
            (package, str(number), f"{killed / number:.0%}", f"{low:.0%} … {high:.0%}")
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def interval(killed: int, number: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share."""
    z, p = 1.96, killed / number
    center, width = (
        p + z**2 / (2 * number),
        math.sqrt(p * (1 - p) / number + (z / (2 * number)) ** 2),
    )
    whole = 1 + z**2 / number
    return (center - z * width) / whole, (center + z * width) / whole
