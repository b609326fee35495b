"""What each process of `test_restores` runs: some steps, on all devices that it has.

    python tests/contract/restores.py FOLDER START STOP [--save-at STEP]

Weights, states and batches lie on one axis of all devices. It goes on from the
checkpoint of step START, if that is not 0, and writes all numbers at its end to
FOLDER/{case}.{start}.{stop}.npz.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dropmuon_optax as dm

SHAPES = {"first": (8, 16), "hidden": (16, 16), "head": (16, 8)}
LAYERS = dm.layers_by_path(list(SHAPES), dm.scion_geometry)
SAMPLING = dm.samplings.Progressive()
RATE, ROWS = 0.02, 16
KEY = 9  # whose sets of steps 4 and 5 have all layers


class Case(NamedTuple):
    """A first tree of all that is saved, and a step of it."""

    tree: Any  # with "key", from which batches are drawn
    step: Callable[[Any, Any, Any], Any]  # (tree, batch, k) -> tree


def weights() -> Any:
    rng = np.random.default_rng(0)
    return {
        name: {"kernel": np.float32(rng.normal(size=shape) / 4)}
        for name, shape in SHAPES.items()
    }


def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ params["first"]["kernel"])
    h = jnp.tanh(h @ params["hidden"]["kernel"])
    return jnp.mean((h @ params["head"]["kernel"] - jnp.sin(x)) ** 2)


def spread(tree: Any, mesh: Any) -> Any:
    """Matrices by rows over all devices, the rest whole on each."""

    def put(x: Any) -> Any:
        return jax.device_put(x, NamedSharding(mesh, P("x") if x.ndim == 2 else P()))

    return jax.tree.map(put, tree)


def plain(tx: Any, key: jax.Array, mesh: Any) -> Case:
    """A loop over trees of arrays."""
    params = spread(weights(), mesh)

    @jax.jit
    def step(tree: Any, x: jax.Array) -> Any:
        grads = jax.grad(loss_fn)(tree["params"], x)
        updates, state = tx.update(grads, tree["state"], tree["params"])
        params = optax.apply_updates(tree["params"], updates)
        return {**tree, "params": params, "state": state}

    first = {"params": params, "state": tx.init(params), "key": key}
    return Case(spread(first, mesh), lambda tree, x, k: step(tree, x))


def static(key: jax.Array, mesh: Any) -> Case:
    """Drop-Muon whose sets are drawn on the host, by the checkpoint's key."""
    tx: Any = dm.drop_muon(RATE, LAYERS, SAMPLING, key=key)
    params = spread(weights(), mesh)

    def update(tree: Any, x: jax.Array, active: Any) -> Any:
        value_and_grad = dm.value_and_grad(loss_fn, LAYERS)
        _, grads = value_and_grad(tree["params"], x, active=active)
        updates, state = tx.update(grads, tree["state"], tree["params"], active=active)
        params = optax.apply_updates(tree["params"], updates)
        return {**tree, "params": params, "state": state}

    jitted = jax.jit(update, static_argnames="active")

    def step(tree: Any, x: jax.Array, k: int) -> Any:
        return jitted(tree, x, dm.active_layers(SAMPLING, 3, tree["key"], k))

    first = {"params": params, "state": tx.init(params), "key": key}
    return Case(spread(first, mesh), step)


class Net(nnx.Module):
    """The same network as a module."""

    def __init__(self):
        rngs, shapes = nnx.Rngs(0), SHAPES
        self.first = nnx.Linear(*shapes["first"], use_bias=False, rngs=rngs)
        self.hidden = nnx.Linear(*shapes["hidden"], use_bias=False, rngs=rngs)
        self.head = nnx.Linear(*shapes["head"], use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(jnp.tanh(self.hidden(jnp.tanh(self.first(x)))))


def flax(key: jax.Array, mesh: Any) -> Case:
    """`nnx.Optimizer`, of which the checkpoint has the state."""
    model = Net()
    nnx.update(model, spread(nnx.state(model), mesh))
    tx: Any = dm.drop_muon(RATE, LAYERS, SAMPLING, key=key)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    both = (model, optimizer)

    @nnx.jit
    def update(model: Net, optimizer: nnx.Optimizer, x: jax.Array) -> None:
        grads = nnx.grad(lambda m: jnp.mean((m(x) - jnp.sin(x)) ** 2))(model)
        optimizer.update(model, grads)

    def kept() -> Any:
        return nnx.to_pure_dict(nnx.state(both))

    def step(tree: Any, x: jax.Array, k: int) -> Any:
        state = nnx.state(both)
        nnx.replace_by_pure_dict(state, tree["state"])
        nnx.update(both, state)
        update(*both, x)
        return {**tree, "state": kept()}

    return Case(spread({"state": kept(), "key": key}, mesh), step)


TYPED, RAW = jax.random.key, jax.random.PRNGKey
CASES: dict[str, Callable[[Any], Case]] = {
    "gluon": lambda mesh: plain(dm.gluon(RATE, LAYERS), TYPED(KEY), mesh),
    "drop_muon, raw": lambda mesh: plain(
        dm.drop_muon(RATE, LAYERS, SAMPLING, key=RAW(KEY)), RAW(KEY), mesh
    ),
    "drop_muon, typed": lambda mesh: static(TYPED(KEY), mesh),
    "nnx": lambda mesh: flax(TYPED(KEY), mesh),
}


def run(name: str, options: argparse.Namespace) -> None:
    """Takes the steps of a case."""
    auto = {"axis_types": (AxisType.Auto,)}
    mesh = jax.make_mesh((jax.device_count(),), ("x",), **auto)
    tree, step = CASES[name](mesh)
    layout = jax.tree.map(struct_of, tree)
    kept = options.folder / name
    with ocp.StandardCheckpointer() as checkpointer:
        if options.start:
            tree = checkpointer.restore(kept / str(options.start), layout)
        check(tree, layout)
        for k in range(options.start, options.stop):
            x = jax.random.normal(jax.random.fold_in(tree["key"], k), (ROWS, 8))
            tree = step(tree, spread(x, mesh), k)
            if k + 1 == options.save_at:
                checkpointer.save(kept / str(k + 1), tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    numbers = {jax.tree_util.keystr(path): plain_of(leaf) for path, leaf in leaves}
    np.savez(options.folder / f"{name}.{options.start}.{options.stop}.npz", **numbers)


def struct_of(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def plain_of(leaf: jax.Array) -> jax.Array:
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if typed else leaf


def check(tree: Any, layout: Any) -> None:
    """Every leaf lies as this process asked, on all of its devices."""
    for leaf, asked in zip(jax.tree.leaves(tree), jax.tree.leaves(layout), strict=True):
        assert leaf.dtype == asked.dtype
        assert leaf.sharding.is_equivalent_to(asked.sharding, leaf.ndim)
        assert len(leaf.sharding.device_set) == jax.device_count()
        if leaf.ndim == 2:
            rows = leaf.shape[0] // jax.device_count()
            assert leaf.addressable_shards[0].data.shape[0] == rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("start", type=int)
    parser.add_argument("stop", type=int)
    parser.add_argument("--save-at", type=int)
    arguments = parser.parse_args()
    for case in CASES:
        run(case, arguments)
