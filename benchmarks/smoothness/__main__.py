"""Gluon's layer-wise smoothness, measured on one batch and on consecutive ones.

Claim: between consecutive batches, as in the published experiment, L̂ echoes the step
that was used, h = L̂·t/‖∇f‖⋆ ≈ √2 in every layer, and the radius that follows is about
0.7 of that step whatever it was; on one batch, and at shares of the step, L̂ shows the
curvature, and gives other radii.

Command: python -m benchmarks.smoothness [--model cnn nanogpt] [--seed 0]
Device: one core of a CPU, ten minutes; any JAX device does.
Expected: the README beside this file.

The learning rate is swept with the published radii, constant along the run; the run of
the best one is measured; L⁰ and L¹ are fitted; and Gluon trains on the radii that they
give by Theorem 1, its learning rate swept over the same multiples around 1.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import dropmuon_optax as dm
from benchmarks.common import record, report
from benchmarks.common.options import Parser, folder, positive, refusing, seed
from benchmarks.common.record import RESULTS
from benchmarks.smoothness.runs import (
    MOMENTUM,
    TASKS,
    Measured,
    Task,
    best,
    measure,
    sweep,
)

SHARES = (1.0, 0.1, 0.01)  # of the step, on one batch
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of a sweep's middle
NUM_STEPS = 100
CONSECUTIVE = "consecutive batches"
COLORS = {CONSECUTIVE: "C3", "one batch, 1·t": "C0", "one batch, 0.01·t": "C2"}
DIGITS = 4  # significant ones of the points in a line


def estimates(measured: Measured) -> dict[str, dm.SmoothnessPoints]:
    """The points of each way to measure, (pairs, matrices)."""
    by_share = {
        f"one batch, {share:g}·t": jax.tree.map(lambda x, j=j: x[:, j], measured.same)
        for j, share in enumerate(SHARES)
    }
    return {CONSECUTIVE: measured.consecutive, **by_share}


def run(task: Task, num_steps: int, every: int) -> dict[str, Any]:
    """Sweeps, measures, fits and compares; returns what the record says of it."""
    rates = [task.learning_rate * m for m in MULTIPLES]
    tuned = sweep(task, task.layers, rates, num_steps, "published radii")
    rate = rates[best(tuned)]
    measured = measure(task, rate, num_steps, every, SHARES)
    entry = {
        "num_steps": num_steps,
        "momentum": MOMENTUM,
        "shares": SHARES,
        "multiples": MULTIPLES,
        "measured_learning_rate": rate,
        "measured_steps": measured.steps,
        "published_radii": {"learning_rates": rates, "validation_losses": tuned},
        "estimates": {},
    }
    for name, points in estimates(measured).items():
        fits = dm.fit_smoothness(points, task.layers, task.params)
        layers = dm.estimated_layers(task.layers, fits, max_honesty=math.inf)
        losses = []
        if name in COLORS:
            losses = sweep(task, layers, list(MULTIPLES), num_steps, name)
        entry["estimates"][name] = {
            "validation_losses": losses,
            "matrices": [
                {**matrix(fit), "points": trajectory(points, i)}
                for i, fit in enumerate(fits)
            ],
        }
    return entry


def matrix(fit: dm.SmoothnessFit) -> dict[str, Any]:
    """A fit as JSON."""
    return {
        "path": fit.name,
        "norm": repr(fit.norm),
        "l0": fit.l0,
        "l1": fit.l1,
        "relative_error": fit.relative_error,
        "honesty": fit.honesty,
        "step": fit.step,
        "gradient": fit.gradient,
        "radius": fit.radius,
        "verdict": fit.verdict,
    }


def trajectory(points: dm.SmoothnessPoints, i: int) -> dict[str, list[float]]:
    """L̂ and ‖∇f‖⋆ of one matrix along the run."""
    gradient = np.asarray(points.gradient)[:, i]
    smoothness = np.asarray(points.smoothness)[:, i]
    return {
        name: [float(f"{value:.{DIGITS}g}") for value in values]
        for name, values in (("smoothness", smoothness), ("gradient", gradient))
    }


def matrices_table(entry: dict[str, Any]) -> str:
    """One row for each matrix: what each way to measure finds, h and the radius over t.

    The line has L⁰, L¹, the relative error and the verdict besides.
    """
    header, columns = ["matrix", "t"], []
    for name, found in entry["estimates"].items():
        header += [f"{name}: h", "radius / t"]
        columns.append(found["matrices"])
    rows = []
    for ways in zip(*columns, strict=True):
        used = ways[0]["step"]
        row = [ways[0]["path"], f"{used:.3g}"]
        for way in ways:
            row += [f"{way['honesty']:.3g}", f"{way['radius'] / used:.3g}"]
        rows.append(row)
    return report.format_table(header, rows)


def losses_table(entry: dict[str, Any]) -> str:
    """One row for each choice of radii: the loss at each multiple, and the least."""
    published = entry["published_radii"]
    rows = [("published radii", published["validation_losses"])]
    rows += [
        (name, found["validation_losses"])
        for name, found in entry["estimates"].items()
        if found["validation_losses"]
    ]
    header = ["radii", *(f"× {m:g}" for m in entry["multiples"]), "best"]
    return report.format_table(
        header,
        [[name, *map(cell, found), cell(found[best(found)])] for name, found in rows],
    )


def cell(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.3f}"


def plot(path: Path, entry: dict[str, Any]) -> None:
    """L̂ along the run and the fitted L⁰ + L¹‖∇f‖⋆, a panel for each matrix.

    Args:
        path: PNG to write.
        entry: A record of `run`.
    """
    names = [way["path"] for way in entry["estimates"][CONSECUTIVE]["matrices"]]
    columns = 4
    height = math.ceil(len(names) / columns)
    figure = Figure(figsize=(15, 2.9 * height + 0.7), layout="constrained")
    panels = figure.subplots(height, columns, squeeze=False, sharex=True).flatten()
    for i, (axes, name) in enumerate(zip(panels, names, strict=False)):
        figures = []
        for way, color in COLORS.items():
            found = entry["estimates"][way]["matrices"][i]
            points = found["points"]
            line = found["l0"] + found["l1"] * np.array(points["gradient"])
            x, h = entry["measured_steps"], f"{found['honesty']:.2g}"
            axes.plot(x, points["smoothness"], ".", color=color, ms=4, label=way)
            axes.plot(x, line, color=color, linewidth=1)
            figures.append(h)
        axes.set_yscale("log")
        axes.set_title(f"{name}, h = {', '.join(figures)}", fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    rate = entry["measured_learning_rate"]
    figure.suptitle(
        f"{entry['model']}, {entry['dataset']}, learning rate {rate:g}: "
        "L̂ (dots), L⁰ + L¹‖∇f‖⋆ (lines) against steps; h in the order below"
    )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; unknown names end the program with the known ones."""
    parser = Parser(
        prog="python -m benchmarks.smoothness",
        description="Measures layer-wise smoothness along runs of Gluon.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--steps", type=positive, default=NUM_STEPS)
    parser.add_argument("--every", type=positive, default=3, help="steps, of a pair")
    parser.add_argument("--seed", type=seed, default=0, help="of weights and batches")
    parser.add_argument("--output", type=folder, default=RESULTS, help="folder")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    origin = record.provenance(seed=options.seed)
    for name in options.model:
        with refusing("smoothness"):
            task = TASKS[name](options.seed)
        entry = {
            "benchmark": "smoothness",
            "model": name,
            "dataset": task.dataset,
            "num_parameters": sum(x.size for x in jax.tree.leaves(task.params)),
            **run(task, options.steps, options.every),
            **origin,
        }
        record.append(options.output / "smoothness.jsonl", entry)
        print(f"\n{name}, {task.dataset}, seed {options.seed}\n")
        print(f"{matrices_table(entry)}\n\n{losses_table(entry)}\n")
        picture = options.output / f"smoothness_{name}_seed{options.seed}.png"
        plot(picture, entry)
        print(f"picture: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
