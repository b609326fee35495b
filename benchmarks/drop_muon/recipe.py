"""Layers that settle early, their outputs kept: a recipe against full-network Muon.

Claim: all layers first, then suffixes that start from kept outputs of the settled
layers (`freeze_and_keep`), get to full Muon's validation accuracy 1.4 times sooner on
MNIST and 1.2 times on Fashion-MNIST; full Muon whose early rates fall as soon doesn't.

Command: python -m benchmarks.drop_muon.recipe [--data mnist fashion_mnist cifar10]
    [--methods muon freeze_and_keep] [--seeds 0 1 2 3 4] [--budgets 4 8 16]
    [--equal s FLOPs steps]
Device: one core of a CPU; any JAX device does. It may be busy: see below.
Expected: the README beside this file.

A budget is what full Muon gets: so many seconds, by the step times that
`recipe_costs` measured on a quiet machine. `--equal` says in what the others get the
same: seconds by that table, FLOPs of their compiled programs, or steps. Learning rates
fall linearly to zero at the end of each run's budget. All methods of a seed start from
the same weights and read samples in the same order.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.common import data, record, train
from benchmarks.common.options import (
    file_name,
    new_parser,
    positive,
    rate,
    rates_of,
    refusing,
    seed,
)
from benchmarks.common.sources import SOURCES
from benchmarks.drop_muon import recipe_costs, recipe_report, recipe_steps, recipes
from benchmarks.drop_muon.recipe_steps import Network
from benchmarks.drop_muon.recipes import METHODS, Method, Plan
from benchmarks.models import cnn

UNITS = ["s", "FLOPs", "steps"]


class Bench(NamedTuple):
    """What all runs on a data set share."""

    dataset: data.Dataset
    network: Network
    accuracy: Any  # (params, images, labels) -> share
    costs: dict[str, recipes.Costs]  # by unit


def prepare(options: argparse.Namespace, name: str) -> Bench:
    """Loads the images and the table of costs."""
    dataset = data.load(name)
    if options.limit:
        dataset = data.head(dataset, options.limit)
    entry = recipe_costs.measured(options.costs, options.model, name)
    costs = {unit: recipe_costs.costs(entry, unit) for unit in UNITS}
    network = recipe_steps.new_network(options.model, recipe_costs.IMAGE_SHAPES[name])
    return Bench(dataset, network, train.build_accuracy(network.apply), costs)


def run(bench: Bench, method: Method, plan: Plan, seed: int) -> dict[str, Any]:
    """Trains as planned and returns what was measured, with units in the keys."""
    params = recipe_steps.first_params(bench.network, seed)
    recipe_steps.compile_all(bench.network, plan)  # outside the clock
    clock, losses = perf_counter(), []
    steps = recipe_steps.training(
        bench.network, bench.dataset, params, method, plan, seed
    )
    for moved, loss in steps:
        params = moved
        losses.append(loss)
    jax.block_until_ready(losses[-1])
    elapsed_s = perf_counter() - clock
    part = bench.dataset.validation_images, bench.dataset.validation_labels
    return {
        "train_time_s": round(elapsed_s, 3),
        "final_loss": train.mean_loss(losses[-50:]),
        "final_validation_accuracy": bench.accuracy(params, *part),
    }


def plans(
    bench: Bench, options: argparse.Namespace, seed: int
) -> Iterator[tuple[str, Method, Plan, dict[str, Any]]]:
    """All runs of a seed. A run of full Muon serves for all units."""
    num_samples = len(bench.dataset.train_labels)
    planned = partial(recipes.plan, num_samples=num_samples, seed=seed)
    for budget_s, name in itertools.product(options.budgets, options.methods):
        full = planned(METHODS["muon"], budget_s, bench.costs["s"])
        for unit in options.equal[:1] if name == "muon" else options.equal:
            budget = recipes.cost(full, bench.costs[unit])
            budget = budget_s if unit == "s" else budget
            for peak in options.learning_rate.get(name, [METHODS[name].learning_rate]):
                method = METHODS[name]._replace(learning_rate=peak)
                plan = planned(method, budget, bench.costs[unit])
                yield name, method, plan, {"budget_s": budget_s, "equal": unit}


def described(bench: Bench, method: Method, plan: Plan) -> dict[str, Any]:
    """What a plan comes to, in all units."""
    kinds = [kind for part in plan.parts for kind in part.kinds]
    moved = [1.0 if k.active is None else np.mean(k.active) for k in kinds]
    return {
        "num_steps": len(kinds),
        "batch_size": method.batch_size,
        "num_images": len(kinds) * method.batch_size,
        "planned_time_s": recipes.cost(plan, bench.costs["s"]),
        "num_flops": recipes.cost(plan, bench.costs["FLOPs"]),
        "share_of_layers_moved": float(np.mean(moved)),
        "stages": [
            {
                "first_step": part.first_step,
                "num_steps": len(part.kinds),
                "num_kept_images": part.num_kept,
            }
            for part in plan.parts
        ],
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; unknown names end the program with the known ones."""
    parser = new_parser(
        "benchmarks.drop_muon.recipe",
        "Trains a CNN with Muon, Drop-Muon on kept outputs, and controls.",
    )
    parser.add_argument("--data", nargs="+", choices=data.DATASETS, default=[*SOURCES])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2, 3, 4])
    parser.add_argument("--budgets", nargs="+", type=rate, default=[4.0, 8.0, 16.0])
    parser.add_argument("--equal", nargs="+", choices=UNITS, default=["s"])
    parser.add_argument(
        "--learning-rate",
        nargs="+",
        type=rates_of(METHODS),
        default=[],
        metavar="NAME=VALUE,…",
        help="each value is a run",
    )
    parser.add_argument("--model", choices=list(cnn.PRESETS), default="small")
    parser.add_argument("--limit", type=positive, help="use only the first images")
    parser.add_argument(
        "--name", type=file_name, default="drop_muon_recipe", help="of the files"
    )
    parser.add_argument(
        "--costs",
        type=record.Path,
        default=record.COMMITTED,
        help="folder with the line of `recipe_costs`",
    )
    options = parser.parse_args(arguments)
    options.learning_rate = dict(options.learning_rate)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    lines = options.output / f"{options.name}.jsonl"
    for dataset in options.data:
        with refusing("drop_muon.recipe"):
            bench, entries = prepare(options, dataset), []
        for number in options.seeds:
            origin = record.provenance(seed=number)
            for name, method, plan, setting in plans(bench, options, number):
                entry = {
                    "benchmark": "drop_muon_recipe",
                    "dataset": dataset,
                    "model": options.model,
                    "num_train_images": len(bench.dataset.train_labels),
                    "method": name,
                    "learning_rate": method.learning_rate,
                    **setting,
                    **described(bench, method, plan),
                    **run(bench, method, plan, number),
                    **origin,
                }
                record.append(lines, entry)
                entries.append(entry)
                print(recipe_report.line(entry), flush=True)
        print(f"\n{recipe_report.tables(entries)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
