"""Equal sweeps: every pair at every rate and momentum, then all seeds at its best.

What a file of lines has already is not run again, so that a sweep may be cut into
pieces: `--minutes` begins no run after so long.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common.options import momentum, positive, rate, seed, share
from benchmarks.ef21_muon import losses
from benchmarks.ef21_muon.compressors import pair_name
from benchmarks.ef21_muon.losses import SAMPLINGS, Plan, Run

PAIRS = ["identity/dense", "natural/scaled_sign", "top50_natural/scaled_sign"]
PAIRS += ["top20_natural/scaled_sign", "top50_sign/scaled_sign", "top20_sign/same"]
PAIRS += ["scaled_sign/same", "top10_natural/natural", "top20_natural/same"]
PAIRS += ["rank20_warm_natural/scaled_sign"]

Entries = Sequence[dict[str, Any]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the part `losses`."""
    add = parser.add_argument
    add("--pairs", nargs="+", type=pair_name, default=PAIRS, metavar="WORKER/SERVER")
    add("--rates", nargs="+", type=rate, default=[2.5e-4, 5e-4, 1e-3])
    add("--momenta", nargs="+", type=momentum, default=[0.5, 0.7, 0.9])
    add("--seeds", nargs="+", type=seed, default=[0, 1, 2])
    add("--minutes", type=rate, default=1e6, help="begin no run after so long")
    kinds: dict[str, Any] = {"warm_down": share, "initial": str, "sampling": str}
    choices = {"initial": ("zeros", "gradient"), "sampling": list(SAMPLINGS)}
    for name, default in Plan._field_defaults.items():
        flag = "--" + name.removeprefix("num_").replace("_", "-")
        kind, known = kinds.get(name, positive), choices.get(name)
        add(flag, dest=name, type=kind, default=default, choices=known)


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(**{name: getattr(options, name) for name in Plan._fields})


def run(
    options: argparse.Namespace,
    known: Entries,
    write: Callable[[dict[str, Any]], None],
) -> None:
    """The grid of every pair with the first seed, then all seeds at its best.

    Args:
        options: The command line.
        known: The lines so far.
        write: Adds a line.
    """
    plan, stop = plan_of(options), time.monotonic() + 60 * options.minutes
    for name in options.pairs:
        settings = {"pair": name, **plan._asdict()}
        done = {
            run_of(entry): entry
            for entry in known
            if all(entry[key] == value for key, value in settings.items())
        }
        grid = itertools.product(options.rates, options.momenta, options.seeds[:1])
        tried, task = [Run(*each) for each in grid], None
        for number, other in enumerate(options.seeds):
            wanted = tried
            if number:
                best = min(tried, key=lambda each: losses.order(done[each]))
                wanted = [best._replace(seed=other)]
            for each in wanted:
                if each not in done:
                    if time.monotonic() > stop:
                        return
                    task = task or losses.build(plan, name)
                    done[each] = one(task, name, each, settings, write)


def one(task: Any, name: str, run: Run, settings: Any, write: Any) -> dict[str, Any]:
    """Trains, and writes the line."""
    label = f"{name} rate {run.rate:g} momentum {run.momentum:g} seed {run.seed}"
    entry = {**settings, **losses.train(task, run, label)}
    write(entry)
    print(f"{label}: {entry['final_validation_loss']}", flush=True)
    return entry


def run_of(entry: dict[str, Any]) -> Run:
    return Run(entry["learning_rate"], entry["momentum"], entry["seed"])
