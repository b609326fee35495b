"""What a step costs at each cutoff of progressive sampling.

Claim: a step with `dm.value_and_grad` and `dm.drop_muon`, its active set static, costs
what a program cut by hand for that set does (FLOPs within 2 %, time within 5 %), and
its memory never exceeds the full step's.

Command: python -m benchmarks.drop_muon.cost [--model cnn resnet18 gpt] [--rounds 10]
Device: a CPU with two cores; any JAX device does.
Expected: the README beside this file.

The steps (`drop_steps` says which) take turns on one batch of noise, ours right before
or after the one cut by hand; ratios are taken inside each round. FLOPs are the
compiler's, which counts the body of a loop once. The only loop is that of Newton–
Schulz, in all steps: what its other iterations multiply is counted by formula, beside.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure
from tqdm import tqdm, trange

from benchmarks.cnn import step_time
from benchmarks.common import record, report, timing
from benchmarks.common.options import Parser, folder, positive, seed
from benchmarks.common.record import RESULTS
from benchmarks.drop_muon.steps import MODELS, Task, cutoffs_of, steps
from dropmuon_optax.layers.leaves import join

# Of by hand's, by hand's, the full step's; the sampling's key and count are 28 bytes.
BARS = {"FLOPs": 1.02, "time": 1.05, "memory": 1.0001}
NEWTON_SCHULZ_STEPS = 5
STYLES = (
    {"color": "black", "linestyle": "--"},
    {"color": "C1", "linestyle": ":"},
    {"color": "C2", "marker": "s", "markerfacecolor": "none", "linewidth": 0.8},
    {"color": "C0", "marker": "."},
)


def measure(task: Task, num_rounds: int, every: int = 1) -> dict[str, Any]:
    """Compiles and times all steps; returns what the record says of them."""
    programs, calls = {}, {}
    for name, step in tqdm(steps(task, every).items(), desc="compiling", leave=False):
        programs[name] = timing.compile_program(
            step.jitted, *step.state, *step.batch, **step.static
        )
        calls[name] = timing.repeat_step(
            programs[name].call, *step.state, batch=step.batch
        )
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in trange(num_rounds, desc="rounds", leave=False):
        # There and back, so that neither of two neighbours is always the first.
        turns = dict(reversed(calls.items())) if number % 2 else calls
        found, _ = timing.time_paired(turns, num_runs=1, num_warmup=int(number == 0))
        for name, quartiles in found.items():
            times[name].append(quartiles.median)

    def ratio(name: str, base: str) -> timing.Quartiles:
        pairs = zip(times[name], times[base], strict=True)
        return timing.quartiles([a / b for a, b in pairs])

    def measured(name: str, cutoff: int) -> dict[str, Any]:
        time_s = timing.quartiles(times[name])
        return {
            **step_time.measurements(time_s, ratio(name, "full"), programs[name]),
            "num_newton_schulz_flops_beside": flops_beside(task, cutoff),
        }

    return {
        "full": measured("full", 0),
        "then_zero": measured("then_zero", 0),
        "cutoffs": [
            {
                "first_layer": task.names[s],
                "num_active": len(task.names) - s,
                "by_hand": measured(f"by_hand_{s}", s),
                "ours": measured(f"ours_{s}", s),
                "time_of_by_hand": ratio(f"ours_{s}", f"by_hand_{s}")._asdict(),
                "time_of_then_zero": ratio(f"ours_{s}", "then_zero")._asdict(),
            }
            for s in cutoffs_of(task, every)
        ],
    }


def flops_beside(task: Task, cutoff: int) -> int:
    """FLOPs of Newton–Schulz that the compiler does not count: all but one step.

    Of the products alone: with p ≤ q the sides of a matrix, a step has XXᵀ, its square,
    and a polynomial of it times X.
    """
    total = 0
    for leaf in join(task.layers, task.params):
        moves = leaf.path.partition("/")[0] in task.names[cutoff:]
        if moves and leaf.layer.norm is not None and leaf.layer.norm.mixes:
            count, *sides = leaf.view.matrix_shape(leaf.value.shape)
            p, q = sorted(sides)
            total += count * (4 * p * p * q + 2 * p**3)
    return (NEWTON_SCHULZ_STEPS - 1) * total


def misses(entry: dict[str, Any]) -> list[str]:
    """Where a bar of the claim is missed."""
    found = []
    for row in entry["cutoffs"]:
        for name, value in shares(entry, row).items():
            if value > BARS[name]:
                where = f"{entry['model']} from {row['first_layer']}"
                found.append(f"{where}: {name} {value:.3f}, bar {BARS[name]}")
    return found


def shares(entry: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
    """What the bars are set for: FLOPs and time of by hand's, memory of the full's."""
    flops, memory = "num_flops_per_step", "peak_memory_bytes"
    return {
        "FLOPs": row["ours"][flops] / row["by_hand"][flops],
        "time": row["time_of_by_hand"]["median"],
        "memory": row["ours"][memory] / entry["full"][memory],
    }


def table(entry: dict[str, Any]) -> str:
    """One row for each cutoff of ours, below those of the two full steps."""
    header = ["moves", "GFLOPs", "of by hand's", "step time", "of by hand's"]
    header += ["of full's", "of then zero's", "peak memory", "of full's", "compile"]

    def cells(ours: dict[str, Any], *shared: str) -> list[str]:
        time_s = ours["step_time_s"]
        flops = ours["num_flops_per_step"] + ours["num_newton_schulz_flops_beside"]
        flops_share, time_share, zero_share, memory_share = shared
        return [
            f"{flops / 1e9:.3g}",
            flops_share,
            f"{report.seconds(time_s['median'])} ({report.seconds(time_s['first'])}"
            f" … {report.seconds(time_s['third'])})",
            time_share,
            f"{ours['step_time_ratio']['median']:.2f}",
            zero_share,
            f"{ours['peak_memory_bytes'] / 1e6:.1f} MB",
            memory_share,
            report.seconds(ours["compile_time_s"]),
        ]

    rows = [
        [name, *cells(entry[key], "—", "—", "—", "—")]
        for name, key in (("all (full)", "full"), ("all (then zero)", "then_zero"))
    ]
    for row in entry["cutoffs"]:
        share, time = shares(entry, row), row["time_of_by_hand"]
        rows.append(
            [
                f"from {row['first_layer']}",
                *cells(
                    row["ours"],
                    f"{share['FLOPs']:.4f}",
                    f"{time['median']:.3f} ({time['first']:.3f} … {time['third']:.3f})",
                    f"{row['time_of_then_zero']['median']:.2f}",
                    f"{share['memory']:.2f}",
                ),
            ]
        )
    return report.format_table(header, rows)


def plot(path: Path, entries: list[dict[str, Any]]) -> None:
    """Draws step time against the number of layers that move, a panel for each model.

    Args:
        path: PNG to write.
        entries: Records, one for each panel.
    """
    figure = Figure(figsize=(5 * len(entries), 4.2), layout="constrained")
    panels = figure.subplots(1, len(entries), squeeze=False)[0]
    for axes, entry in zip(panels, entries, strict=True):
        rows = entry["cutoffs"]
        active = [row["num_active"] for row in rows]
        lines = {
            "full step": [entry["full"]] * len(rows),
            "compute all, then zero": [entry["then_zero"]] * len(rows),
            "cut by hand": [row["by_hand"] for row in rows],
            "ours": [row["ours"] for row in rows],
        }
        for (label, line), style in zip(lines.items(), STYLES, strict=True):
            times = [point["step_time_s"] for point in line]
            middle = [time["median"] for time in times]
            below = [time["median"] - time["first"] for time in times]
            above = [time["third"] - time["median"] for time in times]
            axes.errorbar(active, middle, (below, above), label=label, **style)
        axes.set_title(f"{entry['model']}, batch {entry['batch_size']}")
        axes.set_xlabel("layers that move, counted from the output")
        axes.set_xticks(active)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("step time / s (median and quartiles)")
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; unknown names end the program with the known ones."""
    parser = Parser(
        prog="python -m benchmarks.drop_muon.cost",
        description="Times train steps that drop layers, at each cutoff.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    names = ["cnn", "resnet18", "gpt"]
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=names)
    parser.add_argument("--batch-size", type=positive, help="default: by model")
    parser.add_argument("--rounds", type=positive, help="default: by model")
    parser.add_argument(
        "--every", type=positive, default=1, help="take every so many cutoffs"
    )
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--output", type=folder, default=RESULTS, help="folder")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    origin = record.provenance(seed=options.seed)
    lines = options.output / "drop_cost.jsonl"
    for name in options.model:
        model = MODELS[name]
        batch_size = options.batch_size or model.batch_size
        task = model.build(batch_size, options.seed)
        entry = {
            "benchmark": "drop_cost",
            "model": name,
            "batch_size": batch_size,
            "input_shape": task.batch[0].shape,
            "num_parameters": sum(x.size for x in jax.tree.leaves(task.params)),
            **measure(task, options.rounds or model.num_rounds, options.every),
            **origin,
        }
        record.append(lines, entry)
        print(f"\n{name}, batch {batch_size}\n\n{table(entry)}\n")
        print("\n".join(misses(entry)) or "within the bars at every cutoff")
    newest = {entry["model"]: entry for entry in record.read(lines)}
    plot(
        options.output / "drop_cost.png",
        [newest[name] for name in MODELS if name in newest],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
