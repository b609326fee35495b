"""What a train step costs with each optimizer, in paired runs.

Claim: on the CNN, the oracles of Muon, Scion and Gluon add some 10 % or less to AdamW's
step, and ours and Optax's cannot be told apart.

Command: python -m benchmarks.cnn.step_time [--dataset fashion_mnist] [--model paper]
Device: a CPU with two cores; any JAX device does.
Expected: ratios to AdamW of 1.04 to 1.10 on digits and 0.97 to 1.06 on Fashion-MNIST,
with quartiles 0.1 to 0.3 away on a busy machine.

In each round every optimizer takes one step on the same batch, in turn, so that a slow
spell of the machine hits all of them; ratios are taken inside each round.
"""

import argparse
import sys
from typing import Any

import optax

from benchmarks.common import data, record, report, timing, train
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.options import (
    new_parser,
    positive,
    refusing,
    seed,
)
from benchmarks.models import cnn


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; unknown names end the program with the known ones."""
    parser = new_parser(
        "benchmarks.cnn.step_time",
        "Times train steps of several optimizers in paired runs.",
    )
    parser.add_argument(
        "--optimizers",
        nargs="+",
        choices=list(OPTIMIZERS),
        default=list(OPTIMIZERS)[::-1],
        help="what is timed; ratios are to the first",
    )
    parser.add_argument("--dataset", choices=data.DATASETS, default="digits")
    parser.add_argument("--model", choices=list(cnn.PRESETS), default="small")
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument("--rounds", type=positive, default=50)
    parser.add_argument("--seed", type=seed, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    with refusing("step_time"):
        dataset = data.load(options.dataset)
        batch = next(data.batches(dataset, options.batch_size, 1, seed=options.seed))
    programs, calls = {}, {}
    for name in options.optimizers:
        apply, params = cnn.build(batch[0].shape[1:], options.model, seed=options.seed)
        rate = optax.constant_schedule(OPTIMIZERS[name].learning_rate)
        optimizer = OPTIMIZERS[name].build(rate)
        step, state = train.build_train_step(apply, optimizer), optimizer.init(params)
        programs[name] = timing.compile_program(step, params, state, *batch)
        calls[name] = timing.repeat_step(
            programs[name].call, params, state, batch=batch
        )
    times, ratios = timing.time_paired(calls, num_runs=options.rounds)
    entry = {
        "benchmark": "step_time",
        "dataset": dataset.name,
        "model": options.model,
        "batch_size": options.batch_size,
        "optimizers": {
            name: measurements(times[name], ratios[name], programs[name])
            for name in options.optimizers
        },
        **record.provenance(seed=options.seed),
    }
    record.append(options.output / "step_time.jsonl", entry)
    print(f"\n{dataset.name}, {options.model} CNN, batch {options.batch_size}\n")
    print(table(entry))
    return 0


def measurements(
    time_s: timing.Quartiles, ratio: timing.Quartiles, program: timing.Program
) -> dict[str, Any]:
    """One optimizer's part of the record."""
    return {
        "step_time_s": time_s._asdict(),
        "step_time_ratio": ratio._asdict(),
        "compile_time_s": program.compile_time_s,
        "peak_memory_bytes": program.peak_memory_bytes,
        "num_flops_per_step": program.num_flops,
    }


def table(entry: dict[str, Any]) -> str:
    """One row for each optimizer; quartiles in parentheses."""
    base = next(iter(entry["optimizers"]))
    header = ["optimizer", "step time", f"of {base}'s", "compile time", "peak memory"]
    rows = []
    for name, measured in entry["optimizers"].items():
        time_s, ratio = measured["step_time_s"], measured["step_time_ratio"]
        rows.append(
            [
                name,
                f"{report.seconds(time_s['median'])} ({report.seconds(time_s['first'])}"
                f" … {report.seconds(time_s['third'])})",
                f"{ratio['median']:.2f} ({ratio['first']:.2f} … {ratio['third']:.2f})",
                report.seconds(measured["compile_time_s"]),
                f"{measured['peak_memory_bytes'] / 1e6:.1f} MB",
            ]
        )
    return report.format_table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
