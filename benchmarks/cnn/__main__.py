"""A three-layer CNN trained by Muon, Scion, Gluon, Optax's Muon, AdamW and Drop-Muon.

Claim: our Muon trains as Optax's does, step for step, and both reach the target
accuracy in no more steps than AdamW, Gluon and Scion; on CIFAR-10 in less than half.
Drop-Muon moves fewer layers in as many steps: `drop_muon` from a uniform cutoff on,
`freeze_and_keep` all, then suffixes that start from kept outputs. Its steps take less
time; `benchmarks.drop_muon` says what that is worth.

Command: python -m benchmarks.cnn [--dataset digits|mnist|fashion_mnist|cifar10]
Device: a CPU with two cores; any JAX device does.
Expected: digits takes about a minute and ends between 96 and 99 % with each of the
seven (one point is four images); two epochs of Fashion-MNIST end at 91.6 % with Muon,
91.3 % with Optax's, 90.6 % with AdamW, 90.3 % with Gluon and 89.0 % with Scion, two
epochs of CIFAR-10 at 74.7, 74.6, 67.4, 69.0 and 67.9 %.

The README beside this file says how it is measured and has the tables.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

from benchmarks.cnn import drop
from benchmarks.common import data, record, report, train
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.options import (
    new_parser,
    positive,
    rate,
    refusing,
    seed,
    share,
)
from benchmarks.models import cnn

NUM_EPOCHS = {"digits": 20, "mnist": 2, "fashion_mnist": 2, "cifar10": 3}
BATCH_SIZE = {"digits": 64, "mnist": 128, "fashion_mnist": 128, "cifar10": 128}
TARGET_ACCURACY = {"digits": 0.97, "mnist": 0.98, "fashion_mnist": 0.88, "cifar10": 0.6}
RATES = {
    **{name: entry.learning_rate for name, entry in OPTIMIZERS.items()},
    **{name: method.learning_rate for name, method in drop.METHODS.items()},
}
INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; unknown names end the program with the known ones."""
    parser = new_parser(
        "benchmarks.cnn", "Trains a three-layer CNN with several optimizers."
    )
    parser.add_argument(
        "--optimizers",
        nargs="+",
        choices=list(RATES),
        default=list(RATES),
        help="what trains the network, a run each",
    )
    parser.add_argument("--dataset", choices=data.DATASETS, default="digits")
    parser.add_argument("--model", choices=list(cnn.PRESETS), default="small")
    parser.add_argument("--seed", type=seed, default=0, help="of weights and batches")
    parser.add_argument("--epochs", type=positive, help="default: by data set")
    parser.add_argument("--batch-size", type=positive, help="default: by data set")
    parser.add_argument(
        "--learning-rate",
        type=learning_rate,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="peak learning rate of an optimizer",
    )
    parser.add_argument(
        "--target-accuracy", type=share, help="on validation; default: by data set"
    )
    parser.add_argument("--evaluations", type=positive, default=20)
    parser.add_argument(
        "--limit", type=positive, help="use only the first images of both parts"
    )
    return parser.parse_args(arguments)


def learning_rate(text: str) -> tuple[str, float]:
    """Reads `muon=0.02`."""
    name, _, value = text.partition("=")
    return known(name), rate(value)


def known(name: str) -> str:
    """The name; argparse's error, with the known ones, for an unknown one."""
    if name not in RATES:
        raise argparse.ArgumentTypeError(
            f"unknown optimizer {name!r} (choose from {', '.join(RATES)})"
        )
    return name


class Task(NamedTuple):
    """What all optimizers have in common: data, first weights, order of batches."""

    dataset: data.Dataset
    schedule: train.Schedule
    apply: train.Apply
    preset: str
    params: Any
    accuracy: Callable[..., float]  # one for all, so that it is compiled once


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    target = options.target_accuracy or TARGET_ACCURACY[options.dataset]
    title = f"{options.dataset}, {options.model} CNN, seed {options.seed}"
    entries, status = [], 0
    with refusing("cnn"):
        task = build_task(options)
        images = len(task.dataset.train_labels)
        data.steps_per_epoch(images, task.schedule.batch_size)
    try:
        origin = record.provenance(seed=options.seed)
        for name in options.optimizers:
            peak = dict(options.learning_rate).get(name, RATES[name])
            result, moved = run(task, name, peak)
            entry = {
                "benchmark": "cnn",
                "dataset": task.dataset.name,
                "model": options.model,
                "optimizer": name,
                "learning_rate": peak,
                "learning_rate_schedule": "linear to 0",
                **task.schedule._asdict(),
                "num_train_images": len(task.dataset.train_labels),
                "target_accuracy": target,
                **train.measurements(result, target),
                "share_of_layers_moved": moved,
                **origin,
                "history": [point._asdict() for point in result.history],
            }
            record.append(options.output / "cnn.jsonl", entry)
            entries.append(entry)
    except KeyboardInterrupt:
        print("\ninterrupted; finished runs:", file=sys.stderr)
        status = INTERRUPTED
    print(f"\n{title}\n\n{table(entries, target)}\n")
    if entries:
        picture = f"cnn_{options.dataset}_{options.model}_seed{options.seed}.png"
        report.plot_accuracy(options.output / picture, entries, title, target)
        print(f"lines: {options.output / 'cnn.jsonl'}")
        print(f"picture: {options.output / picture}")
    return status


def build_task(options: argparse.Namespace) -> Task:
    """Loads the images and draws the first weights."""
    dataset = data.load(options.dataset)
    if options.limit:
        dataset = data.head(dataset, options.limit)
    schedule = train.Schedule(
        batch_size=options.batch_size or BATCH_SIZE[options.dataset],
        num_epochs=options.epochs or NUM_EPOCHS[options.dataset],
        seed=options.seed,
        num_evaluations=options.evaluations,
    )
    shape = dataset.train_images.shape[1:]
    apply, params = cnn.build(shape, options.model, seed=options.seed)
    return Task(
        dataset, schedule, apply, options.model, params, train.build_accuracy(apply)
    )


def run(task: Task, name: str, learning_rate: float) -> drop.DropRun:
    """Trains the network with one optimizer."""
    data_and_schedule = task.dataset, task.schedule
    if name in drop.METHODS:
        params = nnx.to_pure_dict(task.params)
        first = name, learning_rate, task.preset, params, task.accuracy
        return drop.train_drop(*first, *data_and_schedule)
    decay = train.linear_decay(*data_and_schedule, learning_rate)
    optimizer = OPTIMIZERS[name].build(decay)
    result = train.train(
        train.build_train_step(task.apply, optimizer),
        task.accuracy,
        task.params,
        optimizer.init(task.params),
        *data_and_schedule,
        label=name,
    )
    return drop.DropRun(result, 1.0)


def table(entries: list[dict[str, Any]], target: float) -> str:
    """One row for each finished run."""
    goal = report.percent(target)
    header = ["optimizer", "learning rate", f"time to {goal}", f"steps to {goal}"]
    header += ["final train", "final validation", "mean step time", "layers moved"]
    header += ["compile time"]
    rows = [
        [
            entry["optimizer"],
            f"{entry['learning_rate']:g}",
            report.seconds(entry["time_to_target_s"], absent="not reached"),
            str(entry["num_steps_to_target"] or "—"),
            report.percent(entry["final_train_accuracy"]),
            report.percent(entry["final_validation_accuracy"]),
            report.seconds(entry["train_time_s"] / entry["num_steps"]),
            f"{entry['share_of_layers_moved']:.0%}",
            report.seconds(entry["compile_time_s"]),
        ]
        for entry in entries
    ]
    return report.format_table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
