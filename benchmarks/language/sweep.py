"""Language models by several optimizers: learning rates swept alike, then seeds.

Claim: at equal tokens Scion, Gluon on theory's radii and our Muon end at the validation
loss of Optax's Muon, in less time. What Drop-Muon saves and loses is told beside.

Command: python -m benchmarks.language.sweep [--optimizers muon …] [--seeds 0 1 2]
Device: any.
Expected: the README beside this file.

1. Each optimizer trains for --sweep-steps at its default learning rate times each of
   --factors, and from the best on at a factor of 2 until it has a neighbor on both
   sides; the best final validation loss counts. Each of these runs is a line of
   `nanogpt_rates.jsonl`; what stands there, with the same settings, isn't run again.
   (--rates gives those that are known, and skips this; --sweep-only ends here.)
2. At its best rate each trains for --steps with every seed. The runs of a seed take
   turns, evaluation by evaluation, there and back, so that a slow spell of the machine
   hits all; times are compared inside a turn.
"""

import argparse
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.common import record
from benchmarks.common.options import Parser, positive, rate, refusing, seed
from benchmarks.language import nanogpt, report, sweep_report, train
from benchmarks.language import options as lm_options
from benchmarks.language.methods import OPTIMIZERS
from benchmarks.language.steps import Method

MAX_RATES = 8  # of one optimizer
SWEEP_SEED = 0  # of the runs that look for learning rates, and of measured radii


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; unknown names end the program with the known ones."""
    parser = Parser(
        prog="python -m benchmarks.language.sweep",
        description="Compares optimizers on a GPT.",
    )
    names = list(OPTIMIZERS)
    parser.add_argument("--optimizers", nargs="+", choices=names, default=names)
    parser.add_argument("--factors", type=rate, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument(
        "--rates",
        type=known_rate,
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="learning rates that are known already: these optimizers aren't swept",
    )
    parser.add_argument("--sweep-steps", type=positive, help="default: half of --steps")
    parser.add_argument("--sweep-only", action="store_true", help="no runs at the best")
    parser.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2])
    lm_options.add_common(parser)
    options = parser.parse_args(arguments)
    lm_options.check_used(parser, options, options.optimizers)
    lm_options.fill_in(options)
    options.sweep_steps = options.sweep_steps or max(1, options.steps // 2)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    with refusing("sweep"):
        task = nanogpt.build_task(options)
        first = nanogpt.plan_of(options, 0.0, SWEEP_SEED)
        nanogpt.check(task, first)
    methods = {
        name: nanogpt.build_method(task, name, first) for name in options.optimizers
    }
    origin = record.provenance(seed=options.seeds[0])
    tried = {
        name: sweep(options, task, name, method) for name, method in methods.items()
    }
    if options.sweep_only:
        return 0
    best = {
        name: min(losses, key=lambda r: losses[r]) for name, losses in tried.items()
    }
    entries = []
    for number in options.seeds:
        for run in compare(options, task, methods, best, number):
            entry = {
                "benchmark": "lm_sweep",
                **nanogpt.settings(options, run.name, run.plan),
                **train.measurements(run),
                "rates_tried": tried_by(tried[run.name]),
                "sweep_steps": options.sweep_steps,
                "stretch_step_times_s": run.step_times_s,
                **origin,
                "seed": number,
            }
            record.append(options.output / "nanogpt.jsonl", entry)
            entries.append(entry)
    finish(options, entries)
    return 0


def known_rate(text: str) -> tuple[str, float]:
    """Reads `muon=0.08`."""
    name, _, value = text.partition("=")
    if name not in OPTIMIZERS:
        raise argparse.ArgumentTypeError(
            f"unknown optimizer {name!r} (choose from {', '.join(OPTIMIZERS)})"
        )
    return name, rate(value)


def tried_by(losses: dict[float, float]) -> list[tuple[float, float | None]]:
    """Learning rates and losses as JSON can hold them."""
    finite = {
        rate: loss if np.isfinite(loss) else None for rate, loss in losses.items()
    }
    return sorted(finite.items())


def sweep(
    options: argparse.Namespace, task: train.Task, name: str, method: Method
) -> dict[float, float]:
    """Final validation losses by learning rate; infinite where not finite."""
    known = dict(options.rates)
    if name in known:
        return {known[name]: float("nan")}
    center = OPTIMIZERS[name].learning_rate
    losses: dict[float, float] = {}
    waiting = [center * factor for factor in sorted(options.factors)]
    while waiting and len(losses) < MAX_RATES:
        rate = waiting.pop(0)
        plan = nanogpt.plan_of(options, rate, SWEEP_SEED)._replace(
            num_steps=options.sweep_steps, num_evaluations=1
        )
        found = final_loss(options, task, name, method, plan)
        losses[rate] = float("inf") if found is None else found
        waiting = waiting or beyond(losses)
    return losses


def final_loss(
    options: argparse.Namespace,
    task: train.Task,
    name: str,
    method: Method,
    plan: train.Plan,
) -> float | None:
    """Validation loss after the last step: as recorded, else by a run; None: no number.

    A run is recorded at once, so that an interrupted sweep loses one run at most.
    """
    settings = nanogpt.settings(options, name, plan)
    lines = options.output / "nanogpt_rates.jsonl"
    for entry in record.read(lines):
        if settings.items() <= entry.items():
            return entry["final_validation_loss"]
    run = train.Run(task, name, method, plan)
    total = plan.num_steps * plan.batch_size * plan.length
    label = f"{name} at {plan.learning_rate:g}"
    with tqdm(total=total, unit=" tokens", unit_scale=True, desc=label) as bar:
        for point in run.advance(bar):
            bar.set_postfix_str(report.loss(point.validation_loss))
    found = run.history[-1].validation_loss
    origin = record.provenance(seed=plan.seed)
    entry = {**settings, "final_validation_loss": found, **origin}
    record.append(lines, {"benchmark": "lm_sweep_rates", **entry})
    return found


def beyond(losses: dict[float, float]) -> list[float]:
    """The rate to try next: past the best one, if that has not two neighbors.

    Examples:
        >>> beyond({0.1: 3.0, 0.2: 2.0, 0.4: 2.5}), beyond({0.1: 3.0, 0.2: 2.0})
        ([], [0.4])
    """
    best = min(losses, key=lambda rate: losses[rate])
    if best == max(losses):
        return [2.0 * best]
    return [0.5 * best] if best == min(losses) else []


def compare(
    options: argparse.Namespace,
    task: train.Task,
    methods: dict[str, Method],
    rates: dict[str, float],
    seed: int,
) -> list[train.Run]:
    """Trains with every optimizer, in turns: same first weights, same batches."""
    runs = [
        train.Run(task, name, method, nanogpt.plan_of(options, rates[name], seed))
        for name, method in methods.items()
    ]
    for run in runs:  # so that no turn has to wait for a compiler
        run.compile_all()
    turns = [run.advance() for run in runs]
    points = options.evaluations + 1
    for number in tqdm(range(points), desc=f"seed {seed}", unit=" turns"):
        for turn in reversed(turns) if number % 2 else turns:
            next(turn, None)
    return runs


def finish(options: argparse.Namespace, entries: list[dict[str, Any]]) -> None:
    """Prints the tables and draws the picture."""
    title = f"{options.data}, {options.preset}, seeds {options.seeds}"
    picture = options.output / f"nanogpt_{options.data}_{options.preset}.png"
    report.plot(picture, entries, title)
    rates, results = sweep_report.rates_table, sweep_report.table
    print(f"\n{title}, after {options.sweep_steps} steps\n\n{rates(entries)}")
    print(f"\nafter {options.steps} steps\n\n{results(entries)}\n")
    print(f"lines: {options.output / 'nanogpt.jsonl'}\npicture: {picture}")


if __name__ == "__main__":
    sys.exit(main())
