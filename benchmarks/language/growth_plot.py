"""A picture of runs at equal FLOPs: validation loss against FLOPs and against time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.language import growth_report

PANELS = ("FLOPs / 10¹² (by formula, optimizer's included)", "time / s (steps × table)")

MIN_SEEDS = 3  # of what is drawn


def plot(
    path: Path,
    groups: dict[str, Sequence[dict[str, Any]]],
    times: list[dict[str, Any]],
) -> None:
    """Draws the runs of each group in one color, thin, and their mean.

    Args:
        path: PNG to write.
        groups: By label, runs that differ in their seed alone; the first group's mean
            at its end is marked by a dotted line.
        times: Lines of step times, by which the runs are valued.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    ends = [ending(entries) for entries in groups.values()]
    for axes, axis, label in zip(panels, (flops_axis, time_axis), PANELS, strict=True):
        for i, (name, entries) in enumerate(groups.items()):
            draw(axes, name, entries, axis(entries[0], times), f"C{i}")
        axes.axhline(np.mean(ends[0]), color="black", linestyle=":", linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    low, high = min(map(min, ends)), max(map(max, ends))
    panels[0].set_ylim(low - 0.01, high + 0.25)
    panels[0].set_ylabel("validation loss / nats per token")
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def chosen(
    entries: list[dict[str, Any]], others: list[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """What the picture of a task shows, by label: runs of three seeds at least.

    Args:
        entries: Lines of the comparison, of one task.
        others: Lines of runs of a fixed number of steps, of which Gluon's count, too.
    """
    task = growth_report.task_of(entries[0])
    own = [e for e in others if growth_report.task_of(e) == task]
    full = [e for e in [*own, *entries] if e["optimizer"] == growth_report.BASE]
    runs = [*full, *(e for e in entries if e not in full)]
    keys = (growth_report.recipe, "num_steps", "learning_rate")
    groups = growth_report.grouped(runs, *keys)
    return {
        f"{name}, {steps} steps, rate {lr:g}": found
        for (name, steps, lr), found in groups.items()
        if len({entry["seed"] for entry in found}) >= MIN_SEEDS
    }


def ending(entries: Sequence[dict[str, Any]]) -> list[float]:
    """Final losses."""
    return [entry["final_validation_loss"] for entry in entries]


def flops_axis(entry: dict[str, Any], times: list[dict[str, Any]]) -> list[float]:
    """10¹² FLOPs at each evaluation."""
    del times
    return [point["num_flops"] / 1e12 for point in entry["history"]]


def time_axis(entry: dict[str, Any], times: list[dict[str, Any]]) -> list[float]:
    """Seconds at each evaluation, by the table."""
    known = growth_report.times_of(entry, times)
    spent = growth_report.train_times(entry, known)
    if spent is None:
        raise ValueError(f"`times` must have every program of {entry['optimizer']}")
    return [spent[point["step"]] for point in entry["history"]]


def draw(
    axes: Any, name: str, entries: Sequence[dict[str, Any]], x: list[float], color: str
) -> None:
    """The curves of each seed and their mean where all looked at the same steps."""
    curves = [[p["validation_loss"] for p in e["history"]] for e in entries]
    common = [curve for curve in curves if len(curve) == len(x)]
    for curve in common:
        axes.plot(x, curve, color=color, linewidth=0.6, alpha=0.5)
    axes.plot(x, np.mean(common, axis=0), color=color, linewidth=1.8, label=name)
    for end in ending(entries):
        axes.plot(x[-1], end, ".", color=color, markersize=4)
