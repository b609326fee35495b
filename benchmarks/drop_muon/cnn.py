"""Drop-Muon against full-network Muon: accuracy against time, by two protocols.

Claim: all layers for the first fifth of the steps, then the last two alone
(`freeze_out`), gets to full Muon's validation accuracies 1.5 to 2 times sooner in as
many steps, and 1.1 to 1.6 times sooner in as much time. Uniform cutoffs do it 1.2 to
1.8 times sooner in as many steps, not on CIFAR-10, and gain nothing in as much time.

Command: python -m benchmarks.drop_muon.cnn [--data mnist fashion_mnist cifar10]
    [--methods muon uniform] [--seeds 0 1 2] [--steps 1000] [--budgets 4 8 16]
Device: one core of a CPU; any JAX device does.
Expected: the README beside this file. The defaults take about half an hour a data
set on one core.

Protocol (i), `--steps` (or `--epochs`): the same number of steps and the same schedule
for all, with accuracies read on the way. Protocol (ii), `--budgets`: the same seconds
for all; each run's learning rate falls to zero at the end of its budget, and the best
over budgets is the method's time to an accuracy. Methods take turns within each seed
and budget. Compilation, warm-up and evaluation are outside the clock.
"""

import argparse
import sys
from collections.abc import Iterator
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import dropmuon_optax as dm
from benchmarks.common import data, record, timing, train
from benchmarks.common.options import (
    count,
    file_name,
    new_parser,
    positive,
    rate,
    rates_of,
    refusing,
    seed,
)
from benchmarks.common.sources import SOURCES
from benchmarks.drop_muon import methods as drop_methods
from benchmarks.drop_muon import report
from benchmarks.drop_muon.methods import METHODS, Method, Plan, Programs
from benchmarks.models import cnn

WAYSIDE_IMAGES = 5_000  # of validation, read on the way; at the end all are read
WAYSIDE_TRAIN_IMAGES = 1_000


class Bench(NamedTuple):
    """What all runs on a data set share."""

    dataset: data.Dataset
    apply: train.Apply
    accuracy: Any  # (params, images, labels) -> share
    programs: dict[drop_methods.Key, Programs]
    optimal: tuple[float, ...]
    common: dict[str, Any]  # what every record says


def prepare(options: argparse.Namespace, name: str) -> Bench:
    """Loads the images, compiles and times the programs, finds the probabilities."""
    dataset = data.load(name)
    if options.limit:
        dataset = data.head(dataset, options.limit)
    apply, params = network(dataset, options.model, 0)
    methods = [METHODS["muon"], METHODS["uniform"]]
    methods += [METHODS[name] for name in options.methods]
    programs = drop_methods.compile_all(
        methods, apply, params, dataset, options.batch_size, options.rounds
    )
    constants = drop_methods.smoothness(
        programs["muon", False], apply, params, dataset, options.batch_size
    )
    times = list(programs["muon", True].step_times_s.values())
    costs = dm.StepCost(times[-1], [*-np.diff(times), 0.0])
    optimal = dm.optimal_probabilities(costs, constants)
    common = {
        "benchmark": "drop_muon_cnn",
        "dataset": name,
        "model": options.model,
        "batch_size": options.batch_size,
        "num_train_images": len(dataset.train_labels),
        "step_times_of_cutoffs_s": times,
        "step_times_of_plain_s": {
            key[0]: found.step_times_s[None]
            for key, found in programs.items()
            if not key[1]
        },
        "smoothness_of_layers": constants,
        "optimal_probabilities": optimal,
    }
    accuracy = train.build_accuracy(apply)
    return Bench(dataset, apply, accuracy, programs, optimal, common)


def network(
    dataset: data.Dataset, preset: str, seed: int
) -> tuple[train.Apply, dict[str, Any]]:
    """The CNN, and its first weights."""
    apply, params = cnn.build(dataset.train_images.shape[1:], preset, seed=seed)
    return apply, nnx.to_pure_dict(params)


def run(
    bench: Bench,
    method: Method,
    plan: Plan,
    options: argparse.Namespace,
    seed: int,
    num_readings: int,
) -> dict[str, Any]:
    """Trains as planned and returns what was measured, with units in the keys."""
    programs = bench.programs[method.optimizer, method.sampling is not None]
    _, params = network(bench.dataset, options.model, seed)
    params, opt_state = timing.copied((params, programs.init(params)))
    steps = len(plan.active)
    feed = data.batches(bench.dataset, options.batch_size, steps, seed=seed)
    history, elapsed_s, num_flops, loss = [], 0.0, 0.0, None
    for start, stop in train.stretches(steps, num_readings):
        clock = perf_counter()
        for step in range(start, stop):
            call = programs.by_active[plan.active[step]].call
            rate = np.float32(method.learning_rate * plan.rate_shares[step])
            params, opt_state, loss = call(params, opt_state, rate, *next(feed))
        jax.block_until_ready((params, opt_state, loss))
        elapsed_s += perf_counter() - clock
        sets = plan.active[start:stop]
        num_flops += sum(programs.by_active[a].num_flops or 0.0 for a in sets)
        history.append(
            {
                "step": stop,
                "num_images": stop * options.batch_size,
                "train_time_s": round(elapsed_s, 4),
                "num_flops": num_flops,
                **wayside(bench, params),
            }
        )
    part = bench.dataset.validation_images, bench.dataset.validation_labels
    return {
        "num_steps": steps,
        "train_time_s": elapsed_s,
        "planned_time_s": sum(programs.step_times_s[a] for a in plan.active),
        "compile_time_s": sum(p.compile_time_s for p in programs.by_active.values()),
        "final_validation_accuracy": bench.accuracy(params, *part),
        "history": history,
    }


def wayside(bench: Bench, params: Any) -> dict[str, float]:
    """Accuracies on the first images of both parts."""
    few, most = slice(WAYSIDE_TRAIN_IMAGES), slice(WAYSIDE_IMAGES)
    found = {
        "train": (bench.dataset.train_images[few], bench.dataset.train_labels[few]),
        "validation": (
            bench.dataset.validation_images[most],
            bench.dataset.validation_labels[most],
        ),
    }
    return {
        f"{name}_accuracy": round(bench.accuracy(params, *part), 5)
        for name, part in found.items()
    }


def plans(
    bench: Bench, options: argparse.Namespace, seed: int
) -> Iterator[tuple[str, Method, Plan, dict[str, Any]]]:
    """All runs of a seed: the methods take turns within each protocol and budget."""
    steps, budgets = options.steps, options.budgets
    if options.epochs:
        images = len(bench.dataset.train_labels)
        steps = options.epochs * data.steps_per_epoch(images, options.batch_size)
    names = options.methods
    turn = seed % len(names)  # nobody is always the first
    names = names[turn:] + names[:turn]
    for budget_s in [None, *budgets] if steps else budgets:
        for name in names:
            for peak in options.learning_rate.get(name, [METHODS[name].learning_rate]):
                method = METHODS[name]._replace(learning_rate=peak)
                if budget_s is None:
                    plan = drop_methods.plan_steps(method, steps, bench.optimal, seed)
                else:
                    key = method.optimizer, method.sampling is not None
                    times = bench.programs[key].step_times_s
                    plan = drop_methods.plan_budget(
                        method, budget_s, times, bench.optimal, seed
                    )
                protocol = "same steps" if budget_s is None else "same time"
                yield name, method, plan, {"protocol": protocol, "budget_s": budget_s}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; unknown names end the program with the known ones."""
    parser = new_parser(
        "benchmarks.drop_muon.cnn",
        "Trains a CNN with Muon and Drop-Muon by two protocols.",
    )
    parser.add_argument("--data", nargs="+", choices=data.DATASETS, default=[*SOURCES])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2])
    parser.add_argument("--steps", type=count, default=1000, help="0: not protocol (i)")
    parser.add_argument("--epochs", type=positive, help="in place of --steps")
    parser.add_argument("--budgets", nargs="*", type=rate, default=[4.0, 8.0, 16.0])
    parser.add_argument(
        "--learning-rate",
        nargs="+",
        type=rates_of(METHODS),
        default=[],
        metavar="NAME=VALUE,…",
        help="each value is a run",
    )
    parser.add_argument("--model", choices=list(cnn.PRESETS), default="small")
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument(
        "--evaluations", type=positive, default=8, help="in a run of protocol (i)"
    )
    parser.add_argument("--rounds", type=positive, default=20, help="to time a step")
    parser.add_argument("--limit", type=positive, help="use only the first images")
    parser.add_argument(
        "--name", type=file_name, default="drop_muon_cnn", help="of the files"
    )
    options = parser.parse_args(arguments)
    options.learning_rate = dict(options.learning_rate)
    if not (options.steps or options.epochs or options.budgets):
        parser.error("--steps 0 and no --budgets leave nothing to run")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    lines = options.output / f"{options.name}.jsonl"
    for dataset in options.data:
        with refusing("drop_muon.cnn"):
            bench, entries = prepare(options, dataset), []
        for number in options.seeds:
            origin = record.provenance(seed=number)
            for name, method, plan, setting in plans(bench, options, number):
                readings = 1 if setting["budget_s"] else options.evaluations
                entry = {
                    **bench.common,
                    "method": name,
                    "learning_rate": method.learning_rate,
                    **setting,
                    **run(bench, method, plan, options, number, readings),
                    **origin,
                }
                record.append(lines, entry)
                entries.append(entry)
                print(report.line(entry), flush=True)
        print(f"\n{report.tables(entries)}\n")
        report.plot(options.output / f"{options.name}_{dataset}.png", entries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
