"""Language models whose layers are absent, frozen or without oracle, at equal FLOPs.

Claim: a GPT that begins with half of its blocks and gets the others late ends at the
loss of one that trains all of them, for fewer FLOPs. What else was tried stands beside.

Command: python -m benchmarks.language.growth --optimizers gluon drop_muon_grown
    [--budgets 800] [--rates 0.0005] [--recipes 0.8:1100] [--seeds 0 1 2]
Device: any.
Expected: the README beside this file.

Every combination of optimizer, recipe (of those that have one), budget, learning rate
and seed is a run, and a line of `language_grown.jsonl`; what stands there with the same
settings isn't run again. A budget is the FLOPs of so many steps that move all layers by
Gluon, oracle included. With --times no run is made: the step of each program is timed
against that of all layers, in turns, and each time is a line of `language_times.jsonl`.
"""

import argparse
import copy
import itertools
import sys
from time import monotonic
from typing import Any

from tqdm import tqdm

from benchmarks.common import record, timing
from benchmarks.common.options import Parser, positive, rate, refusing, seed
from benchmarks.language import growth_plot, growth_report, nanogpt, train
from benchmarks.language import options as lm_options
from benchmarks.language.methods import OPTIMIZERS

LINES, TIMES = "language_grown.jsonl", "language_times.jsonl"
UNFINISHED = 7  # exit status when --minutes are over before all is done


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; unknown names end the program with the known ones."""
    parser = Parser(
        prog="python -m benchmarks.language.growth",
        description="Compares recipes on a GPT at equal FLOPs.",
    )
    names = list(OPTIMIZERS)
    parser.add_argument(
        "--optimizers", nargs="+", choices=names, default=[growth_report.BASE]
    )
    parser.add_argument("--budgets", type=rate, nargs="+", default=[800.0])
    parser.add_argument("--rates", type=rate, nargs="+", help="default: each one's own")
    parser.add_argument(
        "--recipes", nargs="+", default=[None], help="growth, keep or outside share"
    )
    parser.add_argument("--seeds", type=seed, nargs="+", default=[0])
    parser.add_argument("--times", action="store_true", help="time steps instead")
    parser.add_argument("--rounds", type=positive, default=40, help="of --times")
    parser.add_argument("--minutes", type=rate, default=1e9, help="start no run after")
    lm_options.add_common(parser)
    options = parser.parse_args(arguments)
    lm_options.fill_in(options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    if options.times:
        return time_steps(options)
    begun, task = monotonic(), nanogpt.build_task(options)
    for name, number, own in runs(options):
        mine = variant(task, own)
        plan = nanogpt.plan_of(own, own.lr, number)
        method, plan = nanogpt.within(own, mine, name, plan)
        settings = nanogpt.settings(own, name, plan)
        if any(settings.items() <= e.items() for e in record.read(own.output / LINES)):
            continue
        if monotonic() - begun > 60 * options.minutes:
            return UNFINISHED
        run = train.Run(mine, name, method, plan)
        label = f"{name} {own.recipe or ''} {own.budget:g} {own.lr:g} seed {number}"
        for _ in tqdm(run.advance(), desc=label, total=plan.num_evaluations + 1):
            pass
        entry = {
            "benchmark": "language_growth",
            **settings,
            "stages": stages(run),
            **train.measurements(run),
            **record.provenance(seed=number),
        }
        record.append(own.output / LINES, entry)
    entries = record.read(options.output / LINES)
    others = record.read(options.output / "nanogpt.jsonl")
    times = record.read(options.output / TIMES)
    print(growth_report.tables(entries))
    print(f"\n{growth_report.compared(entries, others, times)}")
    for path in growth_plot.pictures(options.output, entries, others, times):
        print(f"picture: {path}")
    return 0


def variant(task: train.Task, own: argparse.Namespace) -> train.Task:
    """The task with a run's knobs; it shares the programs, which these don't change."""
    other = copy.copy(task)
    other.model = task.model._replace(
        growth=own.growth, keep=own.keep, outside_share=own.outside_share
    )
    if own.outside_share != task.model.outside_share:
        other.programs = {}
    return other


def runs(options: argparse.Namespace) -> Any:
    """(optimizer, seed, options of the run) of every combination."""
    for name, budget, number in itertools.product(
        options.optimizers, options.budgets, options.seeds
    ):
        entry = OPTIMIZERS[name]
        knobs = [key for key in growth_report.KNOBS if key in entry.options]
        for recipe in options.recipes if knobs else [None]:
            for lr in options.rates or [entry.learning_rate]:
                own = argparse.Namespace(**vars(options))
                own.budget, own.lr, own.recipe = budget, lr, recipe
                if recipe is not None:
                    setattr(own, knobs[0], read(recipe, type(getattr(own, knobs[0]))))
                yield name, number, own


def read(recipe: str, kind: type) -> Any:
    """The knob's value; ends the program where the recipe is none of that kind."""
    with refusing("growth"):
        try:
            return kind(recipe)
        except ValueError:
            raise ValueError(
                f"`recipes` must be numbers for methods without growth, got {recipe!r}"
            ) from None


def stages(run: train.Run) -> list[tuple[str, int]]:
    """What steps were of, such as 800 of blocks 1100 and then 200 of 1111."""
    counts: dict[str, int] = {}
    for step in range(run.plan.num_steps):
        sets = run.method.sets_at(run.plan, step)
        name = growth_report.name_of(sets, run.task.model.config.num_layers)
        counts[name] = counts.get(name, 0) + 1
    return list(counts.items())


def time_steps(options: argparse.Namespace) -> int:
    """Times the step of every program of the methods named, against that of Gluon."""
    calls, compile_times, first = {}, {}, nanogpt.build_task(options)
    for name, number, own in runs(options):
        task, plan = variant(first, own), nanogpt.plan_of(own, own.lr, number)
        method, plan = nanogpt.within(own, task, name, plan)
        run = train.Run(task, name, method, plan)
        sets_of = [method.sets_at(plan, step) for step in range(plan.num_steps)]
        for sets in dict.fromkeys(sets_of):
            blocks = growth_report.name_of(sets, task.model.config.num_layers)
            label = f"{name} {blocks}"
            if label in calls:
                continue
            program = train.prepare(task, name, method, plan, sets, run.state)
            batch = (plan.rate_at(0.0), train.batch_of(task, plan, 0))
            calls[label] = timing.repeat_step(program.call, *run.state, batch=batch)
            compile_times[label] = program.compile_time_s
    times, ratios = timing.time_paired(calls, num_runs=options.rounds)
    for label in calls:
        entry = {
            "benchmark": "language_times",
            "program": label,
            **{key: getattr(options, key) for key in ("data", "preset", "batch")},
            "length": options.length,
            "step_time_s": times[label]._asdict(),
            "ratio": ratios[label]._asdict(),
            "compile_time_s": compile_times[label],
            **record.provenance(seed=options.seeds[0]),
        }
        record.append(options.output / TIMES, entry)
    print(growth_report.times_table(record.read(options.output / TIMES)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
