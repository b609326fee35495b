"""Flax, Equinox and Orbax: their trees, their training loops, their checkpoints."""

import functools
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from cases import (
    Case,
    apply,
    assert_close,
    assert_equal,
    cases_with,
    every_case,
    jit,
    random_tree,
    run,
    some_cases,
    types,
)
from flax import nnx

import dropmuon_optax as dm
from dropmuon_optax import norms


class Net(nnx.Module):
    """A convolution, a dense layer and a head."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.dense(self.conv(x).mean((1, 2)))))


LAYERS = dm.layers_by_path(
    ["conv", "dense", "head"],
    [
        ("bias", norms.RMS(), 0.5),
        ("head", norms.MaxEntry(), 0.25),
        ("kernel", norms.Spectral(), 1.0),
    ],
)
MUON_LAYERS = dm.layers_by_path(
    ["conv", "dense", "head"],
    [("bias|head", None, 1.0), ("kernel", norms.Spectral(), 1.0)],
)


def loss_of(model: Any) -> jax.Array:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 4, 2)), jnp.float32)
    return jnp.mean((model(x) - 1.0) ** 2)


functions = some_cases("gluon-decayed", "muon-decayed", "scion")


@functools.cache
def nnx_gradients() -> tuple[Any, Any]:
    """The parameters of `Net` and its gradient, as plain dictionaries."""
    model = Net()
    grads = nnx.jit(nnx.grad(loss_of))(model)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param)), nnx.to_pure_dict(grads)


@pytest.mark.parametrize("name", ["gluon", "muon", "muon-by-default", "scion"])
def test_nnx_optimizer(name: str):
    if name == "muon-by-default":
        tx = dm.muon(0.1)
    else:
        tx = getattr(dm, name)(0.1, MUON_LAYERS if name == "muon" else LAYERS)
    model = Net()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer) -> None:
        optimizer.update(model, nnx.grad(loss_of)(model))

    params, grads = nnx_gradients()
    with jax.numpy_dtype_promotion("standard"):  # optax.adam in muon
        step(model, optimizer)
        expected, _ = jit(lambda p, g: apply(tx, p, tx.init(p), g))(params, grads)
    assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), expected)


@cases_with("learning_rate")
def test_plain_nnx_state(case: Case):
    tx, params = case.build(), nnx.state(Net(), nnx.Param)
    state = tx.init(params)
    updates, after = jit(tx.update)(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert types(after) == types(state)
    pure = nnx.to_pure_dict(params)
    expected, _ = jit(tx.update)(pure, tx.init(pure), pure)
    assert_close(nnx.to_pure_dict(updates), expected)


@functools.cache
def linen_gradients() -> tuple[Any, Any]:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
            return nn.Dense(2, name="head")(nn.Dense(4)(x))

    x, block = jnp.ones((1, 3, 4)), Block()
    variables = jit(block.init)(jax.random.key(0), x)
    grad = jax.grad(lambda v: jnp.mean((block.apply(v, x) - 1) ** 2))
    return variables, jit(grad)(variables)


@functions
def test_flax_linen(case: Case):
    (variables, grads), tx = linen_gradients(), case.build()
    state = tx.init(variables)
    updates, after = jit(tx.update)(grads, state, variables)
    assert types(updates) == types(variables)
    assert types(after) == types(state)
    params, grads = variables["params"], grads["params"]
    inner, _ = jit(tx.update)(grads, tx.init(params), params)
    assert_close(updates["params"], inner)  # the collection's name changes nothing


@functools.cache
def eqx_model() -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "conv": eqx.nn.Conv2d(2, 4, 3, key=keys[0]),
        "dense": eqx.nn.Linear(4, 8, key=keys[1]),
        "head": eqx.nn.Linear(8, 2, use_bias=False, key=keys[2]),
        "activation": jax.nn.relu,
    }


@functions
def test_equinox_is_flax_with_its_axes_turned(case: Case):
    params = eqx.filter(eqx_model(), eqx.is_inexact_array)
    tx = case.build()
    updates, _ = jit(tx.update)(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)

    def as_flax(tree: Any) -> Any:
        conv, dense, head = tree["conv"], tree["dense"], tree["head"]
        return {
            "conv": {
                "kernel": jnp.transpose(conv.weight, (2, 3, 1, 0)),
                "bias": conv.bias[:, 0, 0],
            },
            "dense": {"kernel": dense.weight.T, "bias": dense.bias},
            "head": {"kernel": head.weight.T},
        }

    flax = as_flax(params)
    expected, _ = jit(tx.update)(flax, tx.init(flax), flax)
    assert_close(as_flax(updates), expected)


def test_equinox_training_loop():
    model = eqx_model()["dense"]
    tx, x = dm.gluon(0.05), jnp.ones((3, 4))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    def loss(model: Any) -> Any:
        return jnp.mean((jax.vmap(model)(x) - 1.0) ** 2)

    @eqx.filter_jit
    def step(model: Any, state: Any) -> Any:
        grads = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    before = loss(model)
    for _ in range(10):
        model, state = step(model, state)
    assert loss(model) < 0.5 * before


@every_case
def test_orbax_round_trip_resumes_bit_for_bit(case: Case, tmp_path: Path):
    loop = run(case.name, "mixed")
    saved = {"state": loop.states[1], "params": loop.params[1]}
    fresh = {
        "state": case.build().init(random_tree("mixed", 9)),
        "params": loop.params[0],
    }
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "checkpoint", saved)
    checkpointer.wait_until_finished()
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh)
    back = checkpointer.restore(tmp_path / "checkpoint", abstract)
    checkpointer.close()
    assert_equal(back, saved)
    state, params = back["state"], back["params"]
    for k in (1, 2):
        updates, state = loop.update(loop.grads[k], state, params)
        params = optax.apply_updates(params, updates)
    assert_equal((params, state), (loop.params[3], loop.states[3]))


def test_orbax_keeps_a_typed_key_beside_the_state(tmp_path: Path):
    loop, key = run("gluon", "float32"), jax.random.key(7)
    saved = {"state": loop.states[1], "key": key}
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "checkpoint", saved)
    checkpointer.wait_until_finished()
    back = checkpointer.restore(tmp_path / "checkpoint", saved)
    checkpointer.close()
    assert back["key"].dtype == key.dtype
    assert_equal(jax.random.key_data(back["key"]), jax.random.key_data(key))
    assert_equal(back["state"], saved["state"])
