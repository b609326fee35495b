"""The picture: a panel for each part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Line = dict[str, Any]
Bars = dict[str, float]


def plot(path: Path, title: str, lines: Sequence[Line]) -> None:
    """Draws what was measured; a panel says so where nothing was.

    Args:
        path: PNG to write.
        title: Stands over all panels.
        lines: One for each figure.
    """
    figure = Figure(figsize=(18, 11), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(2, 3)
    measured = [line for line in lines if line["status"] == "measured"]
    titles = {
        "updates": "update: times faster than optax.contrib.muon",
        "cutoffs": "Drop-Muon: step time, the full step's = 1",
        "tokens": "GPT: step time, plain SGD's = 1",
        "compression": "EF21-Muon: compression's share of the step",
    }
    places = {
        "updates": grid[:, 0],
        "cutoffs": grid[0, 1],
        "tokens": grid[0, 2],
        "compression": grid[1, 2],
    }
    for part, place in places.items():
        axes = figure.add_subplot(place)
        bars = BARS[part]([line for line in measured if line["part"] == part])
        draw(axes, bars)
        axes.set_title(titles[part], fontsize="medium")
    draw_runs(figure.add_subplot(grid[1, 1]), best_runs(lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def draw(axes: Any, bars: Bars) -> None:
    """Horizontal bars with their values, the first on top."""
    if not bars:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    names = list(bars)[::-1]
    drawn = axes.barh(names, [bars[name] for name in names], color="C0")
    axes.bar_label(drawn, fmt="%.2f", fontsize="x-small", padding=2)
    axes.tick_params(axis="y", labelsize="x-small")
    axes.margins(x=0.15)
    axes.grid(alpha=0.3, axis="x")


def of_updates(lines: Sequence[Line]) -> Bars:
    """Without AdamW, which orthogonalizes nothing."""
    return {
        f"{line['figure']}\n{line['dtype']}: {name}": 1
        / found["update_time_ratio"]["median"]
        for line in lines
        for name, found in line["measured"]["optimizers"].items()
        if name not in ("optax.contrib.muon", "optax.adamw")
    }


def of_cutoffs(lines: Sequence[Line]) -> Bars:
    return {
        line["figure"]: line["measured"]["step_time_ratio"]["median"] for line in lines
    }


def of_tokens(lines: Sequence[Line]) -> Bars:
    return {
        f"{line['figure'].partition(': ')[2]}, {line['dtype']}": line["measured"][
            "step_time_of_sgd"
        ]["median"]
        for line in lines
    }


def of_compression(lines: Sequence[Line]) -> Bars:
    """Of steps; matrices alone are in the table."""
    return {
        f"{line['figure'].partition(':')[0]}\n{name}": share
        for line in lines
        for name, share in line["measured"].get("share_of_step", {}).items()
        if name != "identity/dense"
    }


BARS = {
    "updates": of_updates,
    "cutoffs": of_cutoffs,
    "tokens": of_tokens,
    "compression": of_compression,
}


def best_runs(lines: Sequence[Line]) -> list[Line]:
    """The runs of the newest command that made any, each method at its best rate.

    That is the one of the highest accuracy after the same steps, of the first seed.
    """
    runs = [
        line
        for line in lines
        if line["part"] == "images"
        and line["status"] == "measured"
        and "method" in line["measured"]
    ]
    newest = max((line["run"] for line in runs), default=None)
    found = [line["measured"] for line in runs if line["run"] == newest]
    swept = [run for run in found if run["protocol"] == "same steps"]
    best: dict[Any, tuple[float, float]] = {}
    for run in swept:
        key = run["dataset"], run["method"]
        seen = run["final_validation_accuracy"], run["learning_rate"]
        if run["seed"] == swept[0]["seed"]:
            best[key] = max(best.get(key, seen), seen)
    return [
        run
        for run in found
        if run["learning_rate"]
        == best.get((run["dataset"], run["method"]), (0.0, None))[1]
    ]


def draw_runs(axes: Any, runs: Sequence[Line]) -> None:
    """Accuracy against time of the same steps; ends of the same time as points."""
    axes.set_title("CNN: same steps (lines), same time (points)", fontsize="medium")
    first = [run for run in runs if run["dataset"] == runs[0]["dataset"]]
    if not first:
        draw(axes, {})
        return
    methods = list(dict.fromkeys(run["method"] for run in first))
    for number, method in enumerate(methods):
        color, label = f"C{number}", method
        for run in (run for run in first if run["method"] == method):
            if run["protocol"] == "same steps":
                x = [point["train_time_s"] for point in run["history"]]
                y = [point["validation_accuracy"] for point in run["history"]]
                axes.plot(x, y, color=color, label=label)
                label = None
            else:
                end = run["train_time_s"], run["final_validation_accuracy"]
                axes.plot(*end, "o", color=color, markersize=4)
    axes.set_xlabel("training time / s")
    axes.set_ylabel(f"validation accuracy, {first[0]['dataset']}")
    ends = [run["final_validation_accuracy"] for run in first]
    axes.set_ylim(bottom=max(0.0, min(ends) - 0.1))
    axes.legend(loc="lower right", fontsize="small")
    axes.grid(alpha=0.3)
