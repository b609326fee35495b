"""What a benchmark shows at its end: a table and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column to the left, numbers to the right.

    Examples:
        >>> rows = [["muon", "1.5 s"], ["adamw", "12 s"]]
        >>> print(format_table(["name", "time"], rows))
        | name  |  time |
        | :---- | ----: |
        | muon  | 1.5 s |
        | adamw |  12 s |
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(
        "| "
        + " | ".join([line[0].ljust(widths[0]), *right_aligned(line, widths)])
        + " |"
        for line in (header, rule, *rows)
    )


def right_aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The cells of a line after the first, padded on the left."""
    cells = zip(line[1:], widths[1:], strict=True)
    return [cell.rjust(width) for cell, width in cells]


def seconds(value: float | None, absent: str = "—") -> str:
    """A time in its natural unit, to three digits.

    Examples:
        >>> seconds(0.00421), seconds(2.5), seconds(123.4), seconds(None)
        ('4.21 ms', '2.5 s', '123 s', '—')
    """
    if value is None:
        return absent
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def percent(value: float) -> str:
    """A share in percent.

    Examples:
        >>> percent(0.9876)
        '98.76 %'
    """
    return f"{value * 100:.2f} %"


def plot_accuracy(
    path: Path, entries: Sequence[dict[str, Any]], title: str, target: float
) -> None:
    """Draws accuracy against training time and against steps.

    Args:
        path: PNG to write.
        entries: Records of runs, with `optimizer` and `history`.
        title: Stands over both panels.
        target: Marked by a dotted line.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title)
    for axes, key, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("train_time_s", "step"),
        ("training time / s (compilation and evaluation not counted)", "step"),
        strict=True,
    ):
        for number, entry in enumerate(entries):
            history = entry["history"]
            x = [point[key] for point in history]
            color = f"C{number}"
            validation = [point["validation_accuracy"] for point in history]
            train = [point["train_accuracy"] for point in history]
            axes.plot(x, validation, color=color, label=entry["optimizer"])
            axes.plot(x, train, color=color, linestyle="--", linewidth=0.8)
        axes.axhline(target, color="black", linestyle=":", linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_ylim(lowest(entries, target), 1.005)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy (solid: validation, dashed: training)")
    figure.axes[1].legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def lowest(entries: Sequence[dict[str, Any]], target: float) -> float:
    """Where the accuracy axis starts, so that the differences at the end show.

    Below the target by one and a half times its distance to 1, or lower if a run ends
    there.
    """
    ends = [entry["history"][-1]["validation_accuracy"] for entry in entries]
    return max(0.0, min(1.0 - 2.5 * (1.0 - target), *(end - 0.02 for end in ends)))
