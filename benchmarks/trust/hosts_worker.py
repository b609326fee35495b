"""What each process of `hosts` runs: three optimizers on a small network.

Command: python -m benchmarks.trust.hosts_worker FOLDER [--steps 200] [--resume]
Device: one CPU device each; `benchmarks.trust.hosts` starts four of them.
Expected: FOLDER/{optimizer}.first.{rank}.jsonl, a line a step: the layers that moved,
and a digest of all that is to be the same everywhere.

A step's batch and set of layers are functions of (seed, step, process), so a run that
goes on from a checkpoint writes the lines that an uninterrupted one writes.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import dropmuon_optax as dm
from benchmarks.common import workers
from benchmarks.common.options import positive
from benchmarks.language.checkpoints import Store

AXIS = "data"
ROWS = 4  # of a batch, of each process
SHAPES = {"first": (8, 16), "hidden": (16, 16), "head": (16, 4)}
LAYERS = dm.layers_by_path(list(SHAPES), dm.scion_geometry)
SAMPLING = dm.samplings.Progressive()
RATE = 0.01


class Program(NamedTuple):
    """A first state, and a step of it."""

    state: Any  # (parameters, optimizer's state)
    step: Callable[[Any, int], tuple[Any, Any]]  # (state, k) -> (state, set drawn)


def parameters(mesh: Any) -> Any:
    """The same weights everywhere."""
    rng = np.random.default_rng(0)
    tree = {
        name: {"kernel": np.float32(rng.normal(size=shape) / np.sqrt(shape[0]))}
        for name, shape in SHAPES.items()
    }
    return put(tree, mesh)


def put(tree: Any, mesh: Any) -> Any:
    """Every leaf whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def batch(mesh: Any, step: int) -> jax.Array:
    """A step's rows, each process's its own."""

    def rows(index: Any) -> np.ndarray:
        worker = (index[0].start or 0) // ROWS
        rng = np.random.default_rng((1, step, worker))
        return rng.normal(size=(ROWS, SHAPES["first"][0])).astype(np.float32)

    shape = (mesh.size * ROWS, SHAPES["first"][0])
    return jax.make_array_from_callback(shape, NamedSharding(mesh, P(AXIS)), rows)


def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    """Squares between the network's output and a fixed function of its input."""
    h = jnp.tanh(x @ params["first"]["kernel"])
    h = jnp.tanh(h @ params["hidden"]["kernel"])
    return jnp.mean((h @ params["head"]["kernel"] - jnp.sin(x[:, :4])) ** 2)


def drop(mesh: Any) -> Program:
    """Drop-Muon whose sets are drawn on the host of each process."""
    key = jax.random.key(7)
    tx: Any = dm.drop_muon(RATE, LAYERS, SAMPLING, key=key)
    params = parameters(mesh)

    def update(params: Any, state: Any, x: jax.Array, active: Any) -> Any:
        found = dm.value_and_grad(loss_fn, LAYERS)(params, x, active=active)
        updates, state = tx.update(found[1], state, params, active=active)
        return optax.apply_updates(params, updates), state

    program = jax.jit(update, static_argnames="active", out_shardings=whole(mesh))

    def step(state: Any, k: int) -> tuple[Any, Any]:
        active = dm.active_layers(SAMPLING, len(SHAPES), key, k)
        return program(*state, batch(mesh, k), active=active), active

    return Program((params, put(tx.init(params), mesh)), step)


def sampled(mesh: Any) -> Program:
    """Drop-Muon whose sets are drawn on the devices, by a raw key."""
    tx: Any = dm.drop_muon(RATE, LAYERS, SAMPLING, key=jnp.array([0, 7], jnp.uint32))
    params = parameters(mesh)

    def update(params: Any, state: Any, x: jax.Array) -> Any:
        updates: Any
        updates, state = tx.update(jax.grad(loss_fn)(params, x), state, params)
        moved = [jnp.any(updates[name]["kernel"] != 0) for name in SHAPES]
        return optax.apply_updates(params, updates), state, jnp.stack(moved)

    program = jax.jit(update, out_shardings=whole(mesh))

    def step(state: Any, k: int) -> tuple[Any, Any]:
        *state, moved = program(*state, batch(mesh, k))
        return tuple(state), np.asarray(moved).tolist()

    return Program((params, put(tx.init(params), mesh)), step)


def ef21(mesh: Any) -> Program:
    """EF21-Muon, compressed both ways; all layers move."""
    natural = dm.compressors.Natural()
    tx: Any = dm.ef21_muon(
        RATE,
        LAYERS,
        dm.compressors.Composed(dm.compressors.TopK(0.25), natural),
        natural,
        axis_name=AXIS,
        num_workers=mesh.size,
        key=jax.random.key(7),
    )
    params = parameters(mesh)
    shapes = jax.eval_shape(tx.init, params)
    places = dm.worker_shardings(shapes, AXIS, mesh)
    state = jax.jit(tx.init, out_shardings=places)(params)

    def update(params: Any, state: Any, x: jax.Array) -> Any:
        grads = jax.grad(loss_fn)(dm.local_params(params, AXIS), x)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    program = jax.jit(dm.worker_map(update, AXIS, shapes, mesh))

    def step(state: Any, k: int) -> tuple[Any, Any]:
        return program(*state, batch(mesh, k)), None

    return Program((params, state), step)


OPTIMIZERS = {"drop": drop, "sampled": sampled, "ef21": ef21}


def whole(mesh: Any) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def digest(state: Any) -> str:
    """Of the bits of all leaves that every process has whole."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        if leaf.is_fully_replicated:
            typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            raw = jax.random.key_data(leaf) if typed else leaf
            found.update(np.asarray(raw.addressable_data(0)).tobytes())
    return found.hexdigest()


def run(name: str, program: Program, options: Any, *, again: bool) -> None:
    """Takes the steps of one optimizer, and saves in the middle and at the end."""
    state, start = program.state, 0
    settings = {"optimizer": name, "num_processes": jax.process_count()}
    store = Store(options.folder / "kept" / name, settings)
    restored = store.restore(state) if again or options.resume else None
    if restored is not None:
        state, start = restored[0], restored[1][-1]["step"]
    middle = options.steps // 2
    turn = "again" if again else "first"
    path = options.folder / f"{name}.{turn}.{jax.process_index()}.jsonl"
    with path.open("w") as lines:
        for k in range(start, options.steps):
            state, active = program.step(state, k)
            line = {"step": k, "set": active, "digest": digest(state)}
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            if k + 1 == middle:
                store.save(k + 1, state, [{"step": k + 1}])
    store.close()


def end_as_told(how: str) -> None:
    """What becomes of the last process but one, while the others wait for it."""
    if jax.process_index() == jax.process_count() - 2:
        number = getattr(signal, how)
        os.kill(os.getpid(), number)
        time.sleep(600.0)  # where the signal is swallowed
    multihost_utils.sync_global_devices("never")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust.hosts_worker")
    add = parser.add_argument
    add("folder", type=Path, help="for lines and checkpoints, shared by all")
    add("--steps", type=positive, default=200)
    add("--resume", action="store_true", help="go on from the checkpoint")
    add("--again", action="store_true", help="after each run, its second half")
    add("--end", choices=("SIGTERM", "SIGKILL"), help="how one of them ends then")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = parse(arguments)
    workers.join()
    axes = {"axis_names": (AXIS,), "axis_types": (jax.sharding.AxisType.Auto,)}
    mesh = jax.make_mesh((jax.device_count(),), **axes)
    for name, build in OPTIMIZERS.items():
        program = build(mesh)
        run(name, program, options, again=False)
        if options.again:
            run(name, program, options, again=True)
    if options.end:
        end_as_told(options.end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
