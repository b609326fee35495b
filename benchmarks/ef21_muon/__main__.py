"""EF21-Muon: bytes on the wire, loss against bytes, and what compression itself costs.

Claim: to a validation loss within 0.02 of uncompressed training's, with both directions
counted, at least 7 times fewer bytes than a float32 all-reduce; and compressing takes
at most a tenth of the step.

Command: python -m benchmarks.ef21_muon bytes
         python -m benchmarks.ef21_muon losses
         python -m benchmarks.ef21_muon sent  # of the lines of `losses`
         python -m benchmarks.ef21_muon cost
         python -m benchmarks.ef21_muon show  # tables and pictures of the lines so far
Device: a CPU; `cost` is of whatever device runs it.
Expected: the README beside this file.
"""

import argparse
import functools
import sys
from typing import Any

from benchmarks.common import record
from benchmarks.common.options import Parser, add_output, refusing
from benchmarks.ef21_muon import bytes as ef21_bytes
from benchmarks.ef21_muon import cost, losses, losses_report, report, sent, sweep

NAME = "ef21_muon"
PARTS = ("bytes", "losses", "sent", "cost")


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


def train(options: argparse.Namespace) -> None:
    """The part `losses`: what of the sweep is not yet in the file."""
    known = record.read(options.output / f"{NAME}_losses.jsonl")
    sweep.run(options, known, functools.partial(write, options))


def count_sent(options: argparse.Namespace) -> None:
    """The part `sent`: what pairs of the part `losses` send, if not yet counted."""
    known = losses_report.Sent(record.read(options.output / losses_report.SENT))
    keys = {}
    for entry in record.read(options.output / f"{NAME}_losses.jsonl"):
        plan = losses.Plan(**{name: entry[name] for name in losses.Plan._fields})
        alike = tuple(getattr(plan, name) for name in sent.ALIKE)
        if not known.knows(entry):
            keys[entry["pair"], alike] = plan
    for (pair, _), plan in keys.items():
        write(options, {"pair": pair, **sent.measure(plan, pair)})


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
    adds = {name: parts.add_parser(name) for name in (*PARTS, "show")}
    for part in adds.values():
        add_output(part)
    ef21_bytes.add_options(adds["bytes"])
    cost.add_options(adds["cost"])
    sweep.add_options(adds["losses"])
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    works = {"bytes": count, "losses": train, "sent": count_sent, "cost": time}
    work = works.get(options.part)
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
