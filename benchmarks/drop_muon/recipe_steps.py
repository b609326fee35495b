"""The train steps of `drop_muon.recipe`, compiled; and what each costs.

Costs are measured once, in turns on a quiet machine, and written to a line of
`results/drop_muon_step_costs.jsonl`; all runs are planned and valued by that table, so
that they can be made at any load.

Command: python -m benchmarks.drop_muon.recipe_steps [--data cifar10] [--model small]
Device: one core of a CPU that does nothing else; any JAX device does.
Expected: from the kept outputs of both, a step of conv3 and the head takes about a
fifth of a full one, or less; the README beside this file.
"""

import argparse
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import dropmuon_optax as dm
from benchmarks.common import data, record, report, timing, train
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.options import new_parser, positive
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
KEPT_BATCH = 64  # samples at once, where outputs are kept


class Network(NamedTuple):
    """A network, its first weights by seed, and its train steps by kind."""

    preset: str
    image_shape: tuple[int, int, int]
    apply: Any
    programs: dict[Kind, timing.Program]


def new_network(preset: str, image_shape: tuple[int, int, int]) -> Network:
    """Nothing is compiled yet."""
    apply, _ = cnn.build(image_shape, preset, seed=0)
    return Network(preset, image_shape, apply, {})


def first_params(network: Network, seed: int) -> dict[str, Any]:
    """The weights of a seed."""
    _, params = cnn.build(network.image_shape, network.preset, seed=seed)
    return nnx.to_pure_dict(params)


def optimizer(kind: Kind, rate: Any) -> optax.GradientTransformationExtraArgs:
    """Muon at a rate; inside `dm.drop_layers`, if layers are to be dropped."""
    tx = OPTIMIZERS["muon"].build(lambda count: rate)
    if kind.active is not None:  # the sets are given, so that any sampling serves
        sampling, key = dm.samplings.Progressive(), jax.random.key(0)
        return dm.drop_layers(tx, cnn.muon_layers(), sampling, key=key)
    return optax.with_extra_args_support(tx)


def init_state(kind: Kind, params: Any) -> Any:
    """The optimizer's first state."""
    return optimizer(kind, 0.0).init(params)


def program(network: Network, kind: Kind) -> timing.Program:
    """The compiled train step; compiled when asked for the first time.

    Returns:
        (params, opt_state, rates (b,), x, y) -> (params, opt_state, loss), the first
        two donated. Unless `kind.scaled`, the head's rate is that of all layers.
    """
    if kind not in network.programs:
        params, (x, y) = first_params(network, 0), batch(network, kind, kind.batch_size)
        rates = np.ones(NUM_LAYERS, np.float32)
        state = params, init_state(kind, params)
        step = jax.jit(partial(train_step, network, kind), donate_argnums=(0, 1))
        network.programs[kind] = timing.compile_program(step, *state, rates, x, y)
    return network.programs[kind]


def train_step(
    network: Network,
    kind: Kind,
    params: Any,
    opt_state: Any,
    rates: Any,
    x: Any,
    y: Any,
) -> tuple[Any, Any, jax.Array]:
    """From images, or from the kept outputs of the layers before `kind.start`."""
    apply = partial(network.apply, start=kind.start)
    gradient = dm.value_and_grad(partial(train.cross_entropy, apply), cnn.muon_layers())
    loss, grads = gradient(params, x, y, active=kind.active)
    sets = {} if kind.active is None else {"active": kind.active}
    tx = optimizer(kind, rates[-1])
    updates, opt_state = tx.update(grads, opt_state, params, **sets)
    if kind.scaled:
        shares = dict(zip(cnn.LAYER_ORDER, rates / rates[-1], strict=True))
        updates = {
            name: jax.tree.map(lambda u, share=share: share * u, updates[name])
            for name, share in shares.items()
        }
    return optax.apply_updates(params, updates), opt_state, loss


def batch(network: Network, kind: Kind, num_samples: int) -> tuple[Any, Any]:
    """Noise, or its outputs where the step starts; labels."""
    shape = (num_samples, *network.image_shape)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    if kind.start:
        x = np.asarray(network.apply(first_params(network, 0), x, stop=kind.start))
    return x, np.arange(num_samples, dtype=np.int32) % 10


def prefix(network: Network, stop: int) -> Any:
    """(params, images) -> outputs of the first layers."""
    return partial(network.apply, stop=stop)


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


def keeping(network: Network, stop: int) -> Any:
    """Keeps the outputs of batches, as `dm.cache_features` does."""
    x, _ = batch(network, Kind(None), IN_A_ROW * KEPT_BATCH)
    params, call = first_params(network, 0), jax.jit(prefix(network, stop))
    kept = np.empty(jax.eval_shape(call, params, x).shape, np.float32)

    def keep():
        for start in range(0, len(x), KEPT_BATCH):
            part = slice(start, start + KEPT_BATCH)
            kept[part] = np.asarray(call(params, x[part]))
        return kept

    return keep


def measure(network: Network, num_rounds: int) -> dict[str, Any]:
    """What all steps of all methods cost, by the clock and in FLOPs."""
    needed = list(dict.fromkeys(k for m in METHODS.values() for k in kinds(m)))
    calls = {str(kind): steps_of(network, kind) for kind in needed}
    stops = sorted({kind.start for kind in needed} - {0})
    calls |= {f"keep {stop}": keeping(network, stop) for stop in stops}
    times, _ = timing.time_paired(calls, num_runs=num_rounds)
    times = {name: per_step(measured) for name, measured in times.items()}
    params, (x, _) = first_params(network, 0), batch(network, Kind(None), KEPT_BATCH)
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
    kept = [
        {
            "num_layers_kept": stop,
            "batch_size": KEPT_BATCH,
            "keeping_time_s": times[f"keep {stop}"],
            "num_flops": dm.count_flops(prefix(network, stop), params, x),
            "num_bytes": jax.eval_shape(prefix(network, stop), params, x).size * 4,
        }
        for stop in stops
    ]
    return {"steps": steps, "kept": kept}


def per_step(measured: timing.Quartiles) -> dict[str, float]:
    """Of one step or batch, from those of a turn."""
    seconds = {name: getattr(measured, name) / IN_A_ROW for name in QUARTILES}
    return {**seconds, "num_runs": measured.num_runs}


def costs(entry: dict[str, Any], unit: str) -> Costs:
    """What a measured line says in a unit: "s", "FLOPs" or "steps"."""

    def of(found: dict[str, Any], time: str, flops: str, step: float) -> float:
        values = {"s": found[time]["median"], "FLOPs": found[flops], "steps": step}
        return values[unit]

    step, kept = {}, {}
    for found in entry["steps"]:
        active = None if found["active"] is None else tuple(found["active"])
        kind = Kind(active, *(found[name] for name in Kind._fields[1:]))
        step[kind] = of(found, "step_time_s", "num_flops_per_step", 1.0)
    for found in entry["kept"]:
        whole = of(found, "keeping_time_s", "num_flops", 0.0)
        kept[found["num_layers_kept"]] = whole / found["batch_size"]
    return Costs(step, kept, 2 * KEPT_BATCH)


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
                f"keeping {found['num_layers_kept']} layers' outputs",
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


def measured(folder: Any, preset: str, dataset: str) -> dict[str, Any]:
    """The last line for a network and images of this shape.

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
            "measure it by `python -m benchmarks.drop_muon.recipe_steps`"
        )
    return found[-1]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = new_parser("benchmarks.drop_muon.recipe_steps", "Times train steps.")
    parser.add_argument("--data", choices=data.DATASETS, default="cifar10")
    parser.add_argument("--model", choices=list(cnn.PRESETS), default="small")
    parser.add_argument("--rounds", type=positive, default=30)
    options: argparse.Namespace = parser.parse_args(arguments)
    shape = IMAGE_SHAPES[options.data]
    entry: dict[str, Any] = {
        "benchmark": "drop_muon_step_costs",
        "model": options.model,
        "image_shape": shape,
        **measure(new_network(options.model, shape), options.rounds),
        **record.provenance(seed=0),
    }
    record.append(options.output / LINES, entry)
    print(table(entry))
    return 0


if __name__ == "__main__":
    sys.exit(main())
