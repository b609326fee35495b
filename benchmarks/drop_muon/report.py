"""Tables and pictures of `drop_muon.cnn`, again from its lines.

A time to an accuracy is interpolated: under protocol (i) linearly between two readings,
under (ii) between the ends of runs with neighbouring budgets, linearly in the logarithm
of time. Ratios are full Muon's time over the method's, of the same seed. Full Muon
alone sets the accuracies: under (i) the means of its readings after a half and three
quarters of the steps, under (ii) of its ends after the middle budget, and halfway from
there to those after the next one. "By step times" replaces the clock by the sum of the
median times of the run's steps, which were measured in turns before all runs: nothing
else that the machine did meanwhile is in it.

Command: python -m benchmarks.drop_muon.report benchmarks/results/drop_muon_cnn.jsonl
"""

import argparse
import itertools
import math
import sys
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import report
from benchmarks.common.options import Parser, recorded, refusing
from benchmarks.drop_muon.methods import CUTOFFS, METHODS, Active, plan_steps

Entry = dict[str, Any]
ABSENT = "—"
MAX_CURVES = 6


def line(entry: Entry) -> str:
    """What is printed when a run ends."""
    within = f"{entry['budget_s']:g} s" if entry["budget_s"] else "same steps"
    return (
        f"{entry['dataset']}, seed {entry['seed']}, {within}: {entry['method']} at "
        f"{entry['learning_rate']:g}, {entry['num_steps']} steps in "
        f"{report.seconds(entry['train_time_s'])} (planned "
        f"{report.seconds(entry['planned_time_s'])}): "
        f"{report.percent(entry['final_validation_accuracy'])}"
    )


def first_time(points: list[tuple[float, float]], target: float) -> float | None:
    """The time of the first crossing, from (time, accuracy); None if there is none.

    Examples:
        >>> first_time([(1.0, 0.5), (2.0, 0.7), (3.0, 0.6)], 0.65)
        1.75
    """
    before = None
    for time, accuracy in points:
        if accuracy >= target:
            if before is None or accuracy == before[1]:
                return time
            share = (target - before[1]) / (accuracy - before[1])
            return round(before[0] + share * (time - before[0]), 6)
        before = (time, accuracy)
    return None


def time_on_the_way(entry: Entry, target: float, quiet: bool) -> float | None:
    """Protocol (i): seconds to a validation accuracy."""
    history = entry["history"]
    clock = [point["train_time_s"] for point in history]
    if quiet:
        elapsed_s = quiet_times(entry)
        clock = [elapsed_s[point["step"] - 1] for point in history]
    points = zip(clock, [p["validation_accuracy"] for p in history], strict=True)
    return first_time(list(points), target)


def quiet_times(entry: Entry) -> list[float]:
    """The sum of median step times after each step of a run of protocol (i)."""
    method = METHODS[entry["method"]]
    steps, optimal = entry["num_steps"], tuple(entry["optimal_probabilities"])
    plan = plan_steps(method, steps, optimal, entry["seed"])
    times: dict[Active, float] = dict(
        zip(CUTOFFS, entry["step_times_of_cutoffs_s"], strict=True)
    )
    times[None] = entry["step_times_of_plain_s"].get(method.optimizer, 0.0)
    return list(itertools.accumulate(times[active] for active in plan.active))


def time_of_budgets(
    entries: list[Entry], target: float, quiet: bool = False
) -> float | None:
    """Protocol (ii): seconds in which one of the runs ends at an accuracy.

    None if none does, or if the shortest does: its time is but an upper bound.
    """
    points = sorted(
        (
            math.log(entry["planned_time_s" if quiet else "train_time_s"]),
            entry["final_validation_accuracy"],
        )
        for entry in entries
    )
    if not points or points[0][1] >= target:
        return None
    found = first_time(points, target)
    return None if found is None else math.exp(found)


def chosen(entries: list[Entry], **values: Any) -> list[Entry]:
    """The entries that have these values."""
    return [e for e in entries if all(e[key] == v for key, v in values.items())]


def unique(entries: list[Entry], key: str) -> list[Any]:
    """The values of a key, in order of appearance."""
    return list(dict.fromkeys(entry[key] for entry in entries))


def times_to(
    entries: list[Entry], method: str, target: float, quiet: bool
) -> dict[int, Any]:
    """Seed -> seconds to a target, of runs of one protocol."""
    found = {}
    for seed in unique(entries, "seed"):
        runs = chosen(entries, method=method, seed=seed)
        if runs and runs[0]["budget_s"] is None:
            found[seed] = time_on_the_way(runs[-1], target, quiet)
        elif runs:
            found[seed] = time_of_budgets(runs, target, quiet)
    return found


def targets_of(entries: list[Entry]) -> list[float]:
    """Accuracies to compare times at, by full Muon's runs of one protocol."""
    muon = chosen(entries, method="muon")
    if not muon:
        return []
    if muon[0]["budget_s"] is None:
        _, readings = mean_curve(muon, "step", "validation_accuracy")
        last = len(readings) - 1
        found = [readings[last // 2], readings[3 * last // 4]]
    else:
        budgets = sorted(unique(muon, "budget_s"))
        middle = (len(budgets) - 1) // 2
        ends = ends_of(muon, budgets[middle : middle + 2])
        found = [ends[0], fmean(ends)]
    return [round(accuracy, 3) for accuracy in found]


def ends_of(runs: list[Entry], budgets: list[float]) -> list[float]:
    """The mean final validation accuracy at each budget."""
    return [
        fmean(run["final_validation_accuracy"] for run in chosen(runs, budget_s=budget))
        for budget in budgets
    ]


def spread(values: list[float], form: str = "{:.2f}") -> str:
    """Median (least … largest)."""
    if not values:
        return ABSENT
    middle, least, most = map(form.format, (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({least} … {most})"


def ratios(
    entries: list[Entry], method: str, target: float, quiet: bool = False
) -> list[float]:
    """Full Muon's time over the method's, for each seed in which both got there."""
    base, own = (times_to(entries, name, target, quiet) for name in ("muon", method))
    return [
        base[seed] / own[seed]
        for seed in own
        if base.get(seed) and own[seed] is not None
    ]


def tables(entries: list[Entry]) -> str:
    """Both protocols' tables of each data set."""
    parts = []
    for dataset in unique(entries, "dataset"):
        own = chosen(entries, dataset=dataset)
        for protocol in ("same steps", "same time"):
            runs = chosen(own, protocol=protocol)
            if runs:
                parts.append(f"{dataset}, {protocol}\n\n{table(runs)}")
    return "\n\n".join(parts)


def table(entries: list[Entry]) -> str:
    """One row for each method, of runs of one data set and protocol."""
    targets, budgets = targets_of(entries), unique(entries, "budget_s")
    header = ["method", "learning rate", "seeds"]
    header += [
        "steps, time" if budget is None else f"after {budget:g} s" for budget in budgets
    ]
    header += ["final validation"] if budgets == [None] else []
    header += [f"times faster to {target:.1%}" for target in targets]
    header += [f"by step times, to {target:.1%}" for target in targets]
    rows = []
    for method in unique(entries, "method"):
        own = chosen(entries, method=method)
        cells = [
            method,
            ", ".join(f"{rate:g}" for rate in unique(own, "learning_rate")),
            str(len(unique(own, "seed"))),
        ]
        for budget in budgets:
            runs = chosen(own, budget_s=budget)
            ends = [100 * run["final_validation_accuracy"] for run in runs]
            mean = spread(ends, "{:.2f} %")
            if budget is None and runs:
                steps = fmean(run["num_steps"] for run in runs)
                time_s = fmean(run["train_time_s"] for run in runs)
                cells.append(f"{steps:.0f}, {report.seconds(time_s)}")
            cells.append(mean)
        for quiet, target in itertools.product((False, True), targets):
            found = ratios(entries, method, target, quiet)
            few = len(found) < len(unique(own, "seed"))
            cells.append(spread(found) + (f" [{len(found)} seeds]" if few else ""))
        rows.append(cells)
    return report.format_table(header, rows)


def mean_curve(runs: list[Entry], x: str, y: str) -> tuple[list[float], list[float]]:
    """Mean over seeds of runs with readings at the same shares of their length."""
    points = list(zip(*(run["history"] for run in runs), strict=True))
    return (
        [fmean(point[x] for point in seeds) for seeds in points],
        [fmean(point[y] for point in seeds) for seeds in points],
    )


def plot(path: Path, entries: list[Entry]) -> None:
    """Draws accuracy against time and the budget, and speed-ups with their spread.

    Of at most `MAX_CURVES` methods, those with the most seeds and then the highest
    ends; the tables have them all.

    Args:
        path: PNG to write.
        entries: Records of one data set.
    """
    first = entries[0]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(
        f"{first['dataset']}, {first['model']} CNN, batch {first['batch_size']}"
    )
    on_the_way, ends, bars = figure.subplots(1, 3)
    same_steps = chosen(entries, protocol="same steps")
    same_time = chosen(entries, protocol="same time")
    for i, method in enumerate(shown(entries)):
        runs = chosen(same_steps, method=method)
        if runs:
            curve = mean_curve(runs, "train_time_s", "validation_accuracy")
            on_the_way.plot(*curve, color=f"C{i}", label=method)
        runs = chosen(same_time, method=method)
        budgets = sorted(unique(runs, "budget_s"))
        ends.plot(
            budgets, ends_of(runs, budgets), color=f"C{i}", marker="o", label=method
        )
        for j, target in enumerate(targets_of(same_time)):
            found = ratios(same_time, method, target, quiet=True) or [0.0]
            middle, place = median(found), j + (i - 2.5) / 8
            bars.bar(place, middle, 0.11, color=f"C{i}")
            bars.vlines(place, min(found), max(found), color="black", linewidth=1)
    on_the_way.set_xlabel("same steps for all: training time / s")
    ends.set_xlabel("same time for all: budget / s")
    on_the_way.set_ylabel("validation accuracy, mean over seeds")
    targets = targets_of(same_time)
    bars.set_xticks(range(len(targets)), [f"to {target:.1%}" for target in targets])
    bars.set_ylabel("same time: times faster, by step times")
    bars.axhline(1.0, color="black", linewidth=0.8)
    ends.legend(loc="lower right", fontsize="small")
    for axes in (on_the_way, ends, bars):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def shown(entries: list[Entry]) -> list[str]:
    """The methods of a picture."""

    def rank(method: str) -> tuple[int, float]:
        own = chosen(entries, method=method)
        ends = [entry["final_validation_accuracy"] for entry in own]
        return len(unique(own, "seed")), fmean(ends)

    names = unique(entries, "method")
    best = sorted(names, key=rank, reverse=True)[:MAX_CURVES]
    return [name for name in names if name in best]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(prog="python -m benchmarks.drop_muon.report")
    parser.add_argument("lines", type=Path, help="a file of results: *.jsonl")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables and draws the pictures of recorded runs."""
    path = parse(arguments).lines
    with refusing("drop_muon.report"):
        entries = recorded(path)
    print(tables(entries))
    for dataset in unique(entries, "dataset"):
        picture = path.with_name(f"{path.stem}_{dataset}.png")
        plot(picture, chosen(entries, dataset=dataset))
    return 0


if __name__ == "__main__":
    sys.exit(main())
