"""A picture of runs at equal FLOPs: validation loss against FLOPs and against time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.language import growth_report

Entries = Sequence[dict[str, Any]]

FLOPS = "FLOPs / those of a step of all layers by Gluon (oracle included)"
TIME = "training time / s (steps × a table of step times)"
MIN_SEEDS = 3  # of what is drawn
SHOWN = 0.25  # nats above the lowest loss


def pictures(
    folder: Path, entries: list[Any], others: list[Any], times: list[Any]
) -> list[Path]:
    """Draws each task of which Gluon and one more method have enough seeds.

    Args:
        folder: Where the PNGs go.
        entries: Lines of the comparison.
        others: Lines of runs of a fixed number of steps, of which Gluon's count, too.
        times: Lines of step times, by which the runs are valued.
    """
    paths = []
    for own in growth_report.grouped(entries, growth_report.task_of).values():
        groups = chosen(own, others)
        first = next(iter(groups.values()), own)[0]["optimizer"]
        if len(groups) > 1 and first == growth_report.BASE:
            data, preset = own[0]["data"], own[0]["preset"]
            paths.append(folder / f"language_grown_{data}_{preset}.png")
            plot(paths[-1], groups, times)
    return paths


def chosen(entries: list[Any], others: list[Any]) -> dict[str, list[Any]]:
    """Runs that differ in their seed alone, by label, Gluon's on all layers first."""
    task = growth_report.task_of(entries[0])
    base = growth_report.base_runs(entries, others)
    runs = [e for e in base if growth_report.task_of(e) == task]
    runs += [e for e in entries if e["optimizer"] != growth_report.BASE]
    keys = (growth_report.recipe, "num_steps", "learning_rate")
    groups = growth_report.grouped(growth_report.finite(runs), *keys)
    return {
        f"{name}: {steps} steps at rate {lr:g}": found
        for (name, steps, lr), found in groups.items()
        if len({entry["seed"] for entry in found}) >= MIN_SEEDS
    }


def plot(path: Path, groups: dict[str, list[Any]], times: list[Any]) -> None:
    """Draws the runs of each group in one color, thin, and their mean.

    Args:
        path: PNG to write.
        groups: Label -> runs; where the first group ends in the mean, a dotted line.
        times: Lines of step times; without those of all programs no time is shown.
    """
    axes_of = {FLOPS: [flops_at(entries[0]) for entries in groups.values()]}
    spent = [time_at(entries[0], times) for entries in groups.values()]
    known = [places for places in spent if places is not None]
    if len(known) == len(spent):
        axes_of[TIME] = known
    figure = Figure(figsize=(5.5 * len(axes_of), 5.2), layout="constrained")
    panels = figure.subplots(1, len(axes_of), sharey=True, squeeze=False)[0]
    ends = [ending(entries) for entries in groups.values()]
    for axes, (label, places) in zip(panels, axes_of.items(), strict=True):
        for i, (name, entries) in enumerate(groups.items()):
            draw(axes, name, entries, places[i], f"C{i}")
        axes.axhline(np.mean(ends[0]), color="black", linestyle=":", linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    lowest = min(map(min, ends))
    panels[0].set_ylim(lowest - 0.01, lowest + SHOWN)
    panels[0].set_ylabel("validation loss / nats per token")
    names = panels[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside upper center", ncols=2, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def ending(entries: Entries) -> list[float]:
    """Final losses."""
    return [entry["final_validation_loss"] for entry in entries]


def flops_at(entry: dict[str, Any]) -> list[float]:
    """FLOPs at each evaluation, of a run that spends its budget."""
    budget = entry.get("budget") or entry["num_steps"]
    spent = [point["num_flops"] for point in entry["history"]]
    return [budget * flops / spent[-1] for flops in spent]


def time_at(entry: dict[str, Any], times: list[Any]) -> list[float] | None:
    """Seconds at each evaluation, by the table; None: not all programs were timed."""
    known = growth_report.times_of(entry, times)
    spent = growth_report.train_times(entry, known)
    return spent and [spent[point["step"]] for point in entry["history"]]


def draw(axes: Any, name: str, entries: Entries, x: Any, color: str) -> None:
    """The curves of seeds that looked as often, their mean, and where all ended."""
    curves = [[p["validation_loss"] for p in e["history"]] for e in entries]
    common = [curve for curve in curves if len(curve) == len(x)]
    for curve in common:
        axes.plot(x, curve, color=color, linewidth=0.6, alpha=0.5)
    axes.plot(x, np.mean(common, axis=0), color=color, linewidth=1.8, label=name)
    axes.plot([x[-1]] * len(entries), ending(entries), ".", color=color, markersize=4)
