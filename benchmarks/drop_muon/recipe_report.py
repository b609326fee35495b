"""Tables and pictures of `drop_muon.recipe`, again from its lines.

A run's end is a point (what it cost, validation accuracy); between the ends of runs
with neighboring budgets the accuracy is taken to be linear in the logarithm of the
cost. A speed-up is what full Muon's runs cost to an accuracy over what the method's
do, of the same seed; median (least … largest) over seeds. Full Muon alone sets the
accuracy: the mean of its ends at the next to the largest budget; "end" is that at the
largest.

Command: python -m benchmarks.drop_muon.recipe_report [LINES]
"""

import argparse
import itertools
import math
import sys
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import record, report
from benchmarks.common.options import Parser, recorded, refusing
from benchmarks.drop_muon.report import chosen, first_time, spread, unique

Entry = dict[str, Any]
COSTS = {"s": "planned_time_s", "FLOPs": "num_flops", "steps": "num_steps"}
WORDS = {"s": "the same time", "FLOPs": "the same FLOPs", "steps": "the same steps"}


def line(entry: Entry) -> str:
    """What is printed when a run ends."""
    return (
        f"{entry['dataset']}, {entry['model']}, seed {entry['seed']}, "
        f"{entry['budget_s']:g} s, {WORDS[entry['equal']]}: {entry['method']} at "
        f"{entry['learning_rate']:g}, {entry['num_steps']} steps, "
        f"{report.seconds(entry['planned_time_s'])} by step times "
        f"({report.seconds(entry['train_time_s'])}): "
        f"{report.percent(entry['final_validation_accuracy'])}"
    )


def cost_to(runs: list[Entry], target: float, unit: str) -> float | None:
    """What runs of one method and seed cost to an accuracy; None outside the range."""
    points = sorted(
        (math.log(run[COSTS[unit]]), run["final_validation_accuracy"]) for run in runs
    )
    if not points or points[0][1] >= target:
        return None
    found = first_time(points, target)
    return None if found is None else math.exp(found)


def runs_of(entries: list[Entry], method: str, unit: str) -> list[Entry]:
    """A method's runs in a unit; full Muon's serve for all."""
    own = chosen(entries, method=method)
    return own if method == "muon" else chosen(own, equal=unit)


def speed_ups(
    entries: list[Entry], method: str, target: float, unit: str, valued_in: str = ""
) -> dict[int, float]:
    """By seed: full Muon's cost to an accuracy over the method's.

    Args:
        entries: Of one data set and network.
        method: Whose.
        target: The accuracy.
        unit: That in which all runs got the same.
        valued_in: That of the costs; empty is `unit`, too.
    """
    found = {}
    for seed in unique(entries, "seed"):
        own, base = (
            cost_to(
                chosen(runs_of(entries, name, unit), seed=seed),
                target,
                valued_in or unit,
            )
            for name in (method, "muon")
        )
        if own is not None and base is not None:
            found[seed] = base / own
    return found


def targets_of(entries: list[Entry]) -> list[float]:
    """Full Muon's mean ends at its budgets but the smallest and the largest.

    And halfway between the last two.
    """
    muon = chosen(entries, method="muon")
    ends = [
        fmean(run["final_validation_accuracy"] for run in chosen(muon, budget_s=budget))
        for budget in sorted(unique(muon, "budget_s"))
    ]
    found = [*ends[1:-1], fmean(ends[-2:])] if len(ends) > 2 else []
    return [round(accuracy, 3) for accuracy in found]


def by_method(entries: list[Entry]) -> list[list[Entry]]:
    """The entries of one method each."""
    return [chosen(entries, method=name) for name in unique(entries, "method")]


def groups(entries: list[Entry]) -> list[list[Entry]]:
    """The entries of one data set and network each."""
    keys = dict.fromkeys((e["dataset"], e["model"]) for e in entries)
    return [chosen(entries, dataset=name, model=model) for name, model in keys]


def tables(entries: list[Entry]) -> str:
    """A table for each data set, network and unit."""
    parts = []
    for group in groups(entries):
        for unit in COSTS:
            if chosen(group, equal=unit) and unique(
                chosen(group, equal=unit), "method"
            ):
                title = f"{group[0]['dataset']}, {group[0]['model']}, {WORDS[unit]}"
                parts.append(f"{title}\n\n{table(group, unit)}")
        if targets_of(group):
            parts.append(units_table(group))
    return "\n\n".join(parts)


def rates_table(entries: list[Entry]) -> str:
    """Mean ends by learning rate, of runs with one budget; a method's best is bold."""
    rates = sorted(unique(entries, "learning_rate"))
    header, rows = ["method", *(f"{rate:g}" for rate in rates)], []
    for name in unique(entries, "method"):
        ends = [
            [run["final_validation_accuracy"] for run in chosen(entries, **setting)]
            for setting in ({"method": name, "learning_rate": rate} for rate in rates)
        ]
        means = [fmean(found) if found else None for found in ends]
        best = max(mean for mean in means if mean is not None)
        cells = ["—" if mean is None else report.percent(mean) for mean in means]
        bold = [mean == best for mean in means]
        rows.append(
            [name, *(f"**{c}**" if b else c for c, b in zip(cells, bold, strict=True))]
        )
    return report.format_table(header, rows)


def units_table(entries: list[Entry]) -> str:
    """Runs at the same time, valued in every unit, to the highest accuracy."""
    target, rows = targets_of(entries)[-1], []
    for name in [name for name in unique(entries, "method") if name != "muon"]:
        found = [speed_ups(entries, name, target, "s", unit) for unit in COSTS]
        rows.append([name, *(spread(list(x.values())) for x in found)])
    header = [f"times less than full Muon to {target:.1%}", "time", "FLOPs", "steps"]
    return report.format_table(header, rows)


def table(entries: list[Entry], unit: str) -> str:
    """One row for each method, of runs of one data set and network."""
    if any(len(unique(runs, "learning_rate")) > 1 for runs in by_method(entries)):
        return rates_table(entries)
    names = [name for name in unique(entries, "method") if runs_of(entries, name, unit)]
    own = [run for name in names for run in runs_of(entries, name, unit)]
    budgets, targets = sorted(unique(own, "budget_s")), targets_of(entries)
    header = ["method", "learning rate", "seeds"]
    header += [f"after {budget:g} s" for budget in budgets]
    header += [f"speed-up to {target:.1%}" for target in targets]
    rows = []
    for name in names:
        runs = runs_of(entries, name, unit)
        row = [name, ", ".join(f"{x:g}" for x in unique(runs, "learning_rate"))]
        row.append(str(len(unique(runs, "seed"))))
        for budget in budgets:
            ends = chosen(runs, budget_s=budget)
            row.append(
                spread([100 * e["final_validation_accuracy"] for e in ends], "{:.2f} %")
            )
        for target in targets:
            found = speed_ups(entries, name, target, unit)
            few = len(found) < len(unique(runs, "seed"))
            row.append(
                spread(list(found.values())) + (f" [{len(found)} seeds]" if few else "")
            )
        rows.append(row)
    return report.format_table(header, rows)


def plot(path: Path, entries: list[Entry]) -> None:
    """Draws accuracy against time, and speed-ups as bars with their spread.

    Args:
        path: PNG to write.
        entries: Records at the same time, of one network.
    """
    names = unique(entries, "method")
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    sets = unique(entries, "dataset")
    figure = Figure(figsize=(4.6 * len(sets), 7.2), layout="constrained")
    panels = figure.subplots(2, len(sets), squeeze=False)
    for column, dataset in enumerate(sets):
        own = chosen(entries, dataset=dataset)
        its = {name: colors[name] for name in unique(own, "method")}
        curves(panels[0, column], own, its)
        bars(panels[1, column], own, its)
        panels[0, column].set_title(dataset)
        panels[0, column].legend(fontsize="small", loc="lower right")
    panels[0, 0].set_ylabel("final validation accuracy, mean over seeds")
    panels[1, 0].set_ylabel("times faster than full Muon")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def curves(axes: Any, entries: list[Entry], colors: dict[str, str]) -> None:
    """Accuracy at the end of each budget."""
    for name, color in colors.items():
        runs = chosen(entries, method=name)
        budgets = sorted(unique(runs, "budget_s"))
        ends = [
            [r["final_validation_accuracy"] for r in chosen(runs, budget_s=budget)]
            for budget in budgets
        ]
        if budgets:
            axes.plot(
                budgets, list(map(fmean, ends)), color=color, marker="o", label=name
            )
            axes.fill_between(
                budgets, list(map(min, ends)), list(map(max, ends)), color=color,
                alpha=0.12, linewidth=0,
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := sorted(unique(entries, "budget_s")))
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.set_xlabel("budget of a run / s, by step times")
    axes.grid(alpha=0.3)


def bars(axes: Any, entries: list[Entry], colors: dict[str, str]) -> None:
    """The median speed-up to each target, from the least to the largest over seeds."""
    targets, names = targets_of(entries), [name for name in colors if name != "muon"]
    width = 0.8 / max(1, len(names))
    for place, name in itertools.product(range(len(targets)), names):
        found = list(speed_ups(entries, name, targets[place], "s").values())
        x = place + (names.index(name) - (len(names) - 1) / 2) * width
        if found:
            middle = median(found)
            limits = [[middle - min(found)], [max(found) - middle]]
            axes.bar(x, middle, 0.9 * width, color=colors[name], yerr=limits, capsize=3)
            axes.annotate(
                f"{middle:.2f}", (x, 0.04), ha="center", color="white",
                fontsize="small", rotation=90,
            )  # fmt: skip
    axes.axhline(1, color=colors.get("muon", "black"), linewidth=1.2)
    axes.set_xticks(range(len(targets)))
    axes.set_xticklabels([f"to {target:.1%}" for target in targets])
    axes.grid(axis="y", alpha=0.3)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(prog="python -m benchmarks.drop_muon.recipe_report")
    committed = record.COMMITTED / "drop_muon_recipe.jsonl"
    help_ = "a file of results: *.jsonl"
    parser.add_argument("lines", type=Path, nargs="?", default=committed, help=help_)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables and draws the picture of recorded runs."""
    path = parse(arguments).lines
    with refusing("drop_muon.recipe_report"):
        entries = recorded(path)
    print(tables(entries))
    for model in unique(entries, "model"):
        own = chosen(entries, model=model, equal="s")
        if own:
            plot(path.with_name(f"{path.stem}_{model}.png"), own)
    return 0


if __name__ == "__main__":
    sys.exit(main())
