"""Bytes per step and worker of EF21-Muon, counted in the program.

What is counted is one update over a mesh, given shapes alone: nothing is allocated.
`traced` counts are of the program as written, for any number of workers; `compiled`
ones of what XLA made of it, on as many devices as there are workers: on a CPU set
XLA_FLAGS=--xla_force_host_platform_device_count=64.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import AbstractMesh, AxisType

import dropmuon_optax as dm
from benchmarks.common.options import positive
from benchmarks.ef21_muon.compressors import (
    COMPRESSORS,
    SERVERS,
    all_reduce_bytes,
    pair,
    pair_name,
)
from benchmarks.models import nanogpt
from dropmuon_optax.compressors import Compressor, Identity
from dropmuon_optax.counters.bytes import count_traced_bytes
from dropmuon_optax.counters.traffic import WireBytes
from dropmuon_optax.layers.leaves import join

AXIS, LOCAL = "data", "local"
TOPOLOGIES = ("owner", "gather", "relays")
USUAL = ["owner", "gather"]
WORKERS = [2, 4, 8, 16, 32, 64, 128, 256]
FEW = ("natural", "top10_natural", "top50_sign", "rank10_natural")
ALL_AT = 8  # workers with which all compressors are counted, and not FEW alone


class Case(NamedTuple):
    """One update."""

    tree: str  # a preset of `models.nanogpt`
    pair: str
    topology: str  # "owner", "gather", or "relays": owners with relays
    num_workers: int
    compiled: bool
    node_size: int = 1  # devices of each worker


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the part `bytes`."""
    trees = list(nanogpt.PRESETS)
    parser.add_argument("--trees", nargs="+", choices=trees, default=["small", "124m"])
    parser.add_argument("--workers", nargs="+", type=positive, default=WORKERS)
    parser.add_argument("--compressors", nargs="+", choices=list(COMPRESSORS))
    parser.add_argument("--pairs", nargs="+", type=pair_name, metavar="WORKER/SERVER")
    parser.add_argument(
        "--topologies",
        nargs="+",
        choices=TOPOLOGIES,
        default=USUAL,
        help="who owns matrices, and whether relays carry them",
    )
    parser.add_argument("--devices", type=positive, default=1, help="of each worker")
    parser.add_argument(
        "--compiled", action="store_true", help="compile as well; needs the devices"
    )


def check(options: argparse.Namespace) -> None:
    """ValueError if there are fewer devices than workers to compile for."""
    if options.compiled and max(options.workers) > jax.device_count():
        raise ValueError(
            f"`workers` must be at most the {jax.device_count()} devices with "
            f"`compiled`, got {max(options.workers)}"
        )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All updates to count: by default all compressors with 8 workers, else a few.

    Or, of `pairs`, each with each topology.
    """
    for tree, n in itertools.product(options.trees, options.workers):
        if options.pairs:
            for each, way in itertools.product(options.pairs, options.topologies):
                yield Case(tree, each, way, n, False, options.devices)
            continue
        names = options.compressors or (COMPRESSORS if n == ALL_AT else FEW)
        for name in names:
            pairs = [f"{name}/{server}" for server in SERVERS]
            if name == "identity":
                pairs.remove("identity/same")  # which is /dense
            elif f"{name}/{name}" in pairs:
                pairs.remove(f"{name}/{name}")  # which is /same
            ways = [way for way in options.topologies if way != "gather"]
            rows = [(each, way) for way in ways for each in pairs]
            if "gather" in options.topologies:
                rows.append((f"{name}/dense", "gather"))
            for each, topology in rows:
                yield Case(tree, each, topology, n, False, options.devices)
                if options.compiled:
                    yield Case(tree, each, topology, n, True)


def measure(case: Case) -> dict[str, Any]:
    """Counts an update; returns what the record says of it."""
    config = nanogpt.PRESETS[case.tree]
    params = jax.eval_shape(lambda: nanogpt.build(config, seed=0)[1])
    n, layers = case.num_workers, nanogpt.layers(config)
    tx = dm.ef21_muon(
        1e-3,
        layers,
        *pair(case.pair),
        axis_name=AXIS,
        num_workers=n,
        local_axis_name=LOCAL if case.node_size > 1 else None,
        topology="owner" if case.topology == "relays" else case.topology,
        relays=case.topology == "relays",
        key=jax.random.key(0),
    )
    state = jax.eval_shape(tx.init, params)
    grads = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((n * case.node_size, *x.shape), x.dtype),
        params,
    )  # a batch of which each worker gets its own

    def update(params: Any, state: Any, grads: Any) -> Any:
        own = jax.tree.map(lambda g: g[0], grads)
        updates, state = tx.update(own, state, params)
        return optax.apply_updates(params, updates), state

    if case.compiled:
        devices, types = jax.devices()[:n], (AxisType.Auto,)
        mesh = jax.make_mesh((n,), (AXIS,), devices=devices, axis_types=types)
        mapped = jax.jit(dm.worker_map(update, AXIS, state, mesh))
        sent = dm.count_wire_bytes(mapped.lower(params, state, grads).compile())
    else:
        axes = {AXIS: n} | ({LOCAL: case.node_size} if case.node_size > 1 else {})
        mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
        mapped = dm.worker_map(update, list(axes), state, mesh)
        sent = count_traced_bytes(mapped, params, state, grads)
    shapes = [x.shape for x in jax.tree.leaves(params)]
    num_parameters = sum(map(math.prod, shapes))
    return {
        **case._asdict(),
        "num_parameters": num_parameters,
        "bytes_per_step": between(sent, n) * case.node_size,
        "bytes_per_step_within": sent.total - between(sent, n),  # of each device
        "bytes_per_step_by_kind": sent.by_kind,
        "bytes_per_step_by_dtype": sent.by_dtype,
        "unattributed": list(sent.unattributed),
        "all_reduce_bytes_per_step": all_reduce_bytes(num_parameters, n),
        "ideal_bytes_per_step": ideal(case, layers, params),
        "paper_model": model(case.pair.partition("/")[0], shapes),
    }


def between(sent: WireBytes, num_workers: int) -> float:
    """What a device sends to other workers: not to devices of its own."""
    permutes = "collective-permute"  # whose groups are its pairs
    among = [
        each
        for each in sent.collectives
        if each.group_size == num_workers or each.kind == permutes
    ]
    return sum(each.wire_bytes for each in among)


def ideal(case: Case, layers: Any, params: Any) -> float:
    """Bytes if nothing were filled up: payloads of whole leaves, (n − 1)/n of them.

    Of the workers' and the server's together, each spread evenly over the owners; with
    `gather`, n − 1 times the workers'.
    """
    of_workers, of_server = (dense_if_none(each) for each in pair(case.pair))
    bits = [0, 0]
    for leaf in join(layers, params):
        for count, m, n in leaf.view.matrix_shapes(leaf.value.shape):
            bits[0] += count * of_workers.num_bits((m, n))
            bits[1] += count * of_server.num_bits((m, n))
    others = case.num_workers - 1
    if case.topology == "gather":
        return others * bits[0] / 8
    return others / case.num_workers * sum(bits) / 8


def dense_if_none(compressor: Compressor | None) -> Compressor:
    return Identity() if compressor is None else compressor


def model(name: str, shapes: list[tuple[int, ...]]) -> float | None:
    """What a worker would send by our model of the paper's counting, dense being 1.

    Values of 32 bits, 16 if natural, and indices of 26; Rank-K has (m + n)⌊x·min(m, n)⌋
    values. None where the model says nothing.

    Examples:
        >>> model("top25", [(8, 8)]), model("rank50_natural", [(8, 8)])
        (0.453125, 0.5)
    """
    kind, _, coded = name.partition("_")
    bits = 16 if coded == "natural" or kind == "natural" else 32
    if kind in ("identity", "natural"):
        return bits / 32
    share = int("".join(filter(str.isdigit, kind)) or 0) / 100
    if kind.startswith("top"):
        return share * (bits + 26) / 32
    if not kind.startswith("rank"):
        return None
    sent = sum(math.floor(share * min(s) + 1e-9) * sum(s) for s in shapes)
    return sent * bits / 32 / sum(map(math.prod, shapes))


def saving(entry: dict[str, Any]) -> float:
    """How many times fewer bytes than a float32 all-reduce."""
    return entry["all_reduce_bytes_per_step"] / entry["bytes_per_step"]


def summary(entry: dict[str, Any]) -> str:
    """A line to look at while it counts."""
    how = "compiled" if entry["compiled"] else "traced"
    return (
        f"{entry['tree']} {entry['pair']} {entry['topology']} "
        f"n={entry['num_workers']} {how}: {entry['bytes_per_step'] / 1e6:.3f} MB, "
        f"{saving(entry):.2f}x, "
        f"{entry['bytes_per_step'] / entry['ideal_bytes_per_step']:.3f} of the ideal"
    )
