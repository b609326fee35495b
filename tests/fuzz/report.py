"""The table of random cases by what came of them, from result lines."""

import collections
from typing import Any

OUTCOMES = ("agrees", "not finite, and says so", "zero", "beyond its dtype", "refused")
HEADER = ("family", "cases", *OUTCOMES, "faults")


def table(entries: list[dict[str, Any]]) -> str:
    """A row for each family, over its newest run of each seed."""
    newest, counts = {}, collections.Counter()
    for entry in entries:
        newest |= {(entry["seed"], name): n for name, n in entry["outcomes"].items()}
    for (_, family), outcomes in newest.items():
        for outcome, number in outcomes.items():
            counts[family, outcome] += number
            counts["all", outcome] += number
    rows = [HEADER, (":---", *["---:"] * (len(HEADER) - 1))]
    for family in dict.fromkeys(family for family, _ in sorted(counts, key=_last)):
        each = [counts[family, outcome] for outcome in (*OUTCOMES, "FAULT")]
        rows.append((family, *[f"{n:,}" for n in (sum(each), *each)]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _last(key: tuple[str, str]) -> tuple[bool, str]:
    return key[0] == "all", key[0]
