"""What each train step of `drop_muon.recipe` costs, by the clock and in FLOPs.

Costs are measured once, in turns on a quiet machine, and written to a line of
`results/drop_muon_step_costs.jsonl`; all runs are planned and valued by that table, so
that they can be made at any load.

Command: python -m benchmarks.drop_muon.recipe_costs [--data cifar10] [--model small]
Device: one core of a CPU that does nothing else; any JAX device does.
Expected: from the kept outputs of two layers, a step of conv3 and the head takes about
0.3 of a full one; the README beside this file.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dropmuon_optax as dm
from benchmarks.common import record, report, timing
from benchmarks.common.options import new_parser, positive, refusing
from benchmarks.drop_muon.recipe_steps import (
    KEPT_BATCH,
    Network,
    batch,
    first_params,
    init_state,
    new_network,
    prefix,
    program,
)
from benchmarks.drop_muon.recipes import METHODS, NUM_LAYERS, Costs, Kind, kinds
from benchmarks.models import cnn

IMAGE_SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
}
IN_A_ROW = 8  # steps of a turn: the first finds the caches full of another's arrays
QUARTILES = ("median", "first", "third")
LINES = "drop_muon_step_costs.jsonl"
Span = tuple[int, int]  # outputs of the layers `start`, …, `stop` − 1 are kept


def steps_of(network: Network, kind: Kind) -> Any:
    """Steps in a row, which `timing.time_paired` can repeat, on samples drawn anew."""
    x, y = batch(network, kind, 64 * kind.batch_size)
    params, rng = first_params(network, 0), np.random.default_rng(0)
    carried = list(timing.copied((params, init_state(kind, params))))
    rates, call = np.full(NUM_LAYERS, 0.01, np.float32), program(network, kind).call

    def step():
        loss = None
        for _ in range(IN_A_ROW):
            chosen = rng.integers(len(x), size=kind.batch_size)
            *carried[:], loss = call(*carried, rates, x[chosen], y[chosen])
        return carried, loss

    return step


def keeping(network: Network, start: int, stop: int) -> Any:
    """Keeps the outputs of batches, as `dm.cache_features` does."""
    x, _ = batch(network, Kind(None, start), IN_A_ROW * KEPT_BATCH)
    params, call = first_params(network, 0), jax.jit(prefix(network, start, stop))
    kept = np.empty(jax.eval_shape(call, params, x).shape, np.float32)

    def keep():
        for first in range(0, len(x), KEPT_BATCH):
            part = slice(first, first + KEPT_BATCH)
            kept[part] = np.asarray(call(params, x[part]))
        return kept

    return keep


def measure(
    network: Network, needed: list[Kind], spans: list[Span], num_rounds: int
) -> dict[str, Any]:
    """What steps cost, and keeping outputs, by the clock and in FLOPs."""
    calls = {str(kind): steps_of(network, kind) for kind in needed}
    calls |= {f"keep {span}": keeping(network, *span) for span in spans}
    times, _ = timing.time_paired(calls, num_runs=num_rounds)
    times = {name: per_step(measured) for name, measured in times.items()}
    params = first_params(network, 0)
    steps = [
        {
            **kind._asdict(),
            "step_time_s": times[str(kind)],
            "num_flops_per_step": program(network, kind).num_flops,
            "compile_time_s": program(network, kind).compile_time_s,
            "peak_memory_bytes": program(network, kind).peak_memory_bytes,
        }
        for kind in needed
    ]
    kept = []
    for start, stop in spans:
        x, _ = batch(network, Kind(None, start), KEPT_BATCH)
        run = prefix(network, start, stop)
        kept.append(
            {
                "num_layers_known": start,
                "num_layers_kept": stop,
                "batch_size": KEPT_BATCH,
                "keeping_time_s": times[f"keep {(start, stop)}"],
                "num_flops": dm.count_flops(run, params, x),
                "num_bytes": jax.eval_shape(run, params, x).size * 4,
            }
        )
    return {"steps": steps, "kept": kept}


def all_kinds() -> list[Kind]:
    """All steps of all methods; full Muon's is the first."""
    return list(dict.fromkeys(k for m in METHODS.values() for k in kinds(m)))


def all_spans() -> list[Span]:
    """From which layers' outputs, or images, to which outputs may be kept."""
    return list(itertools.combinations(sorted({k.start for k in all_kinds()}), 2))


def per_step(measured: timing.Quartiles) -> dict[str, float]:
    """Of one step or batch, from those of a turn."""
    seconds = {name: getattr(measured, name) / IN_A_ROW for name in QUARTILES}
    return {**seconds, "num_runs": measured.num_runs}


def costs(entry: dict[str, Any], unit: str) -> Costs:
    """What a measured line says in a unit: "s", "FLOPs" or "steps"."""

    def of(found: dict[str, Any], time: str, flops: str, step: float) -> float:
        values = {"s": found[time]["median"], "FLOPs": found[flops], "steps": step}
        return values[unit]

    step = {
        kind_in(found): of(found, "step_time_s", "num_flops_per_step", 1.0)
        for found in entry["steps"]
    }
    kept = {
        span_in(found): of(found, "keeping_time_s", "num_flops", 0.0)
        / found["batch_size"]
        for found in entry["kept"]
    }
    return Costs(step, kept, 2 * KEPT_BATCH)


def kind_in(found: dict[str, Any]) -> Kind:
    """Which step a part of a line is about."""
    active = None if found["active"] is None else tuple(found["active"])
    return Kind(active, *(found[name] for name in Kind._fields[1:]))


def span_in(found: dict[str, Any]) -> Span:
    """Which layers are run to keep outputs; the first lines knew of images alone."""
    return found.get("num_layers_known", 0), found["num_layers_kept"]


def table(entry: dict[str, Any]) -> str:
    """A row for each step, and for keeping a batch's outputs."""
    header = ["step", "batch", "time", "of full's", "GFLOPs", "of full's", "memory"]
    first = entry["steps"][0]
    full_s = first["step_time_s"]["median"]
    rows = []
    for found in entry["steps"]:
        time, flops = found["step_time_s"], found["num_flops_per_step"]
        spread = " … ".join(report.seconds(time[key]) for key in ("first", "third"))
        rows.append(
            [
                name_of(found),
                str(found["batch_size"]),
                f"{report.seconds(time['median'])} ({spread})",
                f"{time['median'] / full_s:.2f}",
                f"{flops / 1e9:.3g}",
                f"{flops / first['num_flops_per_step']:.2f}",
                f"{found['peak_memory_bytes'] / 1e6:.1f} MB",
            ]
        )
    for found in entry["kept"]:
        time = found["keeping_time_s"]
        share = first["batch_size"] / found["batch_size"]
        spread = " … ".join(
            report.seconds(share * time[key]) for key in ("first", "third")
        )
        flops = share * found["num_flops"]
        rows.append(
            [
                kept_name(found),
                str(first["batch_size"]),
                f"{report.seconds(share * time['median'])} ({spread})",
                f"{share * time['median'] / full_s:.2f}",
                f"{flops / 1e9:.3g}",
                f"{flops / first['num_flops_per_step']:.2f}",
                f"{found['num_bytes'] / found['batch_size'] / 1e3:.3g} kB a sample",
            ]
        )
    return report.format_table(header, rows)


def name_of(found: dict[str, Any]) -> str:
    """What a step does, in words."""
    if found["active"] is None:
        return "all, a rate for each" if found["scaled"] else "all (full Muon)"
    first = cnn.LAYER_ORDER[found["active"].index(True)]
    kept = f", {found['start']} kept" if found["start"] else ""
    return f"from {first}{kept}"


def kept_name(found: dict[str, Any]) -> str:
    """What is kept, in words."""
    known, stop = span_in(found)
    return f"keeping {stop} layers' outputs" + (f" from {known}'s" if known else "")


def measured(folder: Path, preset: str, dataset: str) -> dict[str, Any]:
    """The last line for a network and images of this shape, and what later ones add.

    Raises:
        ValueError: If there is none.
    """
    shape = list(IMAGE_SHAPES[dataset])
    found = [
        entry
        for entry in record.read(folder / LINES)
        if entry["model"] == preset and entry["image_shape"] == shape
    ]
    if not found:
        raise ValueError(
            f"`{folder / LINES}` must have a line of {preset} and images {shape}; "
            "measure it by `python -m benchmarks.drop_muon.recipe_costs`"
        )
    first, *rest = found[max(i for i, e in enumerate(found) if not e.get("adds")) :]
    steps = {kind_in(part): part for part in first["steps"]}
    kept = {span_in(part): part for part in first["kept"]}
    for entry in rest:  # beside full Muon's step, at another time
        full = (e["steps"][0]["step_time_s"]["median"] for e in (first, entry))
        factor = next(full) / next(full)
        for part in entry["steps"]:
            steps.setdefault(kind_in(part), in_time(part, "step_time_s", factor))
        for part in entry["kept"]:
            kept.setdefault(span_in(part), in_time(part, "keeping_time_s", factor))
    return {**first, "steps": list(steps.values()), "kept": list(kept.values())}


def in_time(part: dict[str, Any], key: str, factor: float) -> dict[str, Any]:
    """The part with its quartiles multiplied."""
    quartiles = {name: factor * part[key][name] for name in QUARTILES}
    return {**part, key: {**part[key], **quartiles}}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = new_parser("benchmarks.drop_muon.recipe_costs", "Times train steps.")
    parser.add_argument("--data", choices=list(IMAGE_SHAPES), default="cifar10")
    parser.add_argument("--model", choices=list(cnn.PRESETS), default="small")
    parser.add_argument("--rounds", type=positive, default=30)
    parser.add_argument(
        "--add",
        action="store_true",
        help="measure only what the lines in the folder lack, beside full Muon's step",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    shape, needed, spans = IMAGE_SHAPES[options.data], all_kinds(), all_spans()
    if options.add:
        with refusing("drop_muon.recipe_costs"):
            known = measured(options.output, options.model, options.data)
        steps, kept = map(kind_in, known["steps"]), map(span_in, known["kept"])
        needed = needed[:1] + sorted(set(needed) - set(steps), key=needed.index)
        spans = sorted(set(spans) - set(kept))
    entry: dict[str, Any] = {
        "benchmark": "drop_muon_step_costs",
        "model": options.model,
        "image_shape": shape,
        **({"adds": True} if options.add else {}),
        **measure(new_network(options.model, shape), needed, spans, options.rounds),
        **record.provenance(seed=0),
    }
    record.append(options.output / LINES, entry)
    print(table(entry))
    return 0


if __name__ == "__main__":
    sys.exit(main())
