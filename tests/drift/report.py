"""The table of drift, from result lines."""

from typing import Any

HEADER = (
    "algorithm | dtype | largest ‖X‖₂, radii | largest RMS, radii | "
    "largest ‖W − X‖, first tenth … all | last distance | entries that stand still"
)


def table(entries: list[dict[str, Any]]) -> str:
    """A row for the newest run of each algorithm and dtype."""
    newest = {(e["algorithm"], e["dtype"]): e for e in entries}
    rows = [HEADER, " | ".join([":---", ":---", *["---:"] * 5])]
    for (name, dtype), e in newest.items():
        ball = name.startswith("scion")
        gap = ""
        if "server" in name:  # elsewhere X is W
            gap = f"{e['largest_gap_in_the_first_tenth']:.3f} … {e['largest_gap']:.3f}"
        cells = [
            name,
            dtype,
            f"{e['largest_spectral_over_radius']:.4f}" if ball else "",
            f"{e['largest_rms_over_radius']:.4f}" if ball else "",
            gap,
            f"{e['last_distance']:.3g}",
            f"{e['still_entries_in_the_last_tenth']:.1%}",
        ]
        rows.append(" | ".join(cells))
    return "\n".join(f"| {row} |" for row in rows)
