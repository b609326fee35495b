"""EF21-Muon: bytes on the wire, loss against bytes, and what compression itself costs.

Claim: to a validation loss within 0.02 of uncompressed training's, with both directions
counted, at least 7 times fewer bytes than a float32 all-reduce; and compressing takes
at most a tenth of the step.

Command: python -m benchmarks.ef21_muon bytes
         python -m benchmarks.ef21_muon losses
         python -m benchmarks.ef21_muon cost
         python -m benchmarks.ef21_muon show  # tables and pictures of the lines so far
Device: a CPU; `cost` is of whatever device runs it.
Expected: the README beside this file.
"""

import argparse
import sys
from typing import Any

from benchmarks.common import record
from benchmarks.common.options import (
    Parser,
    folder,
    momentum,
    positive,
    rate,
    refusing,
    seed,
    share,
)
from benchmarks.common.record import RESULTS
from benchmarks.ef21_muon import bytes as ef21_bytes
from benchmarks.ef21_muon import cost, losses, report
from benchmarks.ef21_muon.compressors import pair_name

NAME = "ef21_muon"
PARTS = ("bytes", "losses", "cost")


def write(options: argparse.Namespace, entry: dict[str, Any]) -> None:
    """Adds a line to the file of the part, whole or not at all."""
    entry = {"benchmark": f"{NAME}_{options.part}", **entry}
    seed = entry.get("seed", 0)
    entry |= record.provenance(seed=seed)
    record.append(options.output / f"{NAME}_{options.part}.jsonl", entry)


def count(options: argparse.Namespace) -> None:
    """The part `bytes`: one line for each tree, pair, topology and worker count."""
    for case in ef21_bytes.cases(options):
        entry = ef21_bytes.measure(case)
        write(options, entry)
        print(ef21_bytes.summary(entry), flush=True)


def sweep(options: argparse.Namespace) -> None:
    """The part `losses`: every pair at every rate, then all seeds at its best."""
    plan = losses.Plan(**{name: getattr(options, name) for name in losses.Plan._fields})
    for name in options.pairs:
        task = losses.build(plan, name)

        def run(rate: float, seed: int, task: Any = task, name: str = name) -> Any:
            found = losses.train(task, rate, seed, f"{name} {rate:g} seed {seed}")
            settings = {"pair": name, **plan._asdict()}
            sent = {
                "num_parameters": task.num_parameters,
                "bytes_per_step_by_kind": task.bytes_per_step,
            }
            write(options, {**settings, **sent, **found})
            loss = found["final_validation_loss"]
            print(f"{name} rate {rate:g} seed {seed}: {loss}", flush=True)
            return found

        tried = [run(rate, options.seeds[0]) for rate in options.rates]
        best = min(tried, key=losses.order)["learning_rate"]
        for number in options.seeds[1:]:
            run(best, number)


def time(options: argparse.Namespace) -> None:
    """The part `cost`: single matrices, then steps of a small GPT."""
    for entry in cost.measure_all(options):
        write(options, entry)
        print(cost.summary(entry), flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(
        prog=f"python -m benchmarks.{NAME}",
        description="Measures EF21-Muon.",
    )
    parts = parser.add_subparsers(dest="part", required=True)
    form = argparse.ArgumentDefaultsHelpFormatter
    adds = {
        name: parts.add_parser(name, formatter_class=form) for name in (*PARTS, "show")
    }
    for part in adds.values():
        part.add_argument("--output", type=folder, default=RESULTS, help="folder")
    ef21_bytes.add_options(adds["bytes"])
    cost.add_options(adds["cost"])
    add = adds["losses"].add_argument
    pairs = ["identity/dense", "natural/same", "top10_natural/dense"]
    pairs += ["top10_natural/natural", "top10_natural/same", "top20_natural/same"]
    pairs += ["top30_natural/same", "rank10_natural/natural"]
    add("--pairs", nargs="+", type=pair_name, default=pairs, metavar="WORKER/SERVER")
    add("--rates", nargs="+", type=rate, default=[2.5e-4, 5e-4, 1e-3])
    add("--seeds", nargs="+", type=seed, default=[0, 1, 2])
    kinds: dict[str, Any] = {
        "momentum": momentum,
        "warm_down": share,
        "initial": initial,
    }
    for name, default in losses.Plan._field_defaults.items():
        flag = "--" + name.removeprefix("num_").replace("_", "-")
        add(flag, dest=name, type=kinds.get(name, positive), default=default)
    return parser.parse_args(arguments)


def initial(text: str) -> str:
    """Reads what the momentum starts from."""
    if text not in ("zeros", "gradient"):
        raise argparse.ArgumentTypeError(f"must be zeros or gradient, got {text!r}")
    return text


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    work = {"bytes": count, "losses": sweep, "cost": time}.get(options.part)
    with refusing(NAME):  # before the first of many runs
        if options.part == "losses":
            losses.check(options)
        if options.part == "bytes":
            ef21_bytes.check(options)
    if work is not None:
        work(options)
    report.show(options.output, PARTS if work is None else [options.part])
    return 0


if __name__ == "__main__":
    sys.exit(main())
