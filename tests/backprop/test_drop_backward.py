"""DropBP's rule: a branch that is run and that no gradient enters."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropmuon_optax as dm
from dropmuon_optax.counters import count_flops

LENGTH, WIDTH = 3, 6
MOVES = list(itertools.product([False, True], repeat=LENGTH))


def weights(seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    return {
        "embed": rng.standard_normal((4, width)) / 2,
        "blocks": rng.standard_normal((LENGTH, width, width)) / 2,
    }


X = np.random.default_rng(1).standard_normal((5, 4))


def by_the_book(params, moves):
    """Loss Σh² and its gradient in NumPy; the backward pass skips some branches."""
    h, seen = X @ params["embed"], []
    for w in params["blocks"]:
        seen.append((h, np.tanh(h @ w)))
        h = h + seen[-1][1]
    loss, delta = np.sum(h**2), 2 * h
    grads = {"blocks": np.zeros_like(params["blocks"])}
    for j in reversed(range(LENGTH)):
        if not moves[j]:
            continue  # the path alone: δ stays as it is
        before, branch = seen[j]
        inner = delta * (1 - branch**2)
        grads["blocks"][j] = before.T @ inner
        delta = delta + inner @ params["blocks"][j].T
    grads["embed"] = X.T @ delta
    return loss, grads


def block(w, h):
    return h + jnp.tanh(h @ w)


def scanned(params, x, moves):
    h = x @ params["embed"]
    frozen = dm.drop_backward(block)
    h = dm.scan_layers(block, params["blocks"], h, moves, frozen=frozen)
    return jnp.sum(h**2)


def unrolled(params, x, moves):
    h = x @ params["embed"]
    for j in range(LENGTH):
        h = (block if moves[j] else dm.drop_backward(block))(params["blocks"][j], h)
    return jnp.sum(h**2)


@pytest.mark.parametrize("loss_fn", [scanned, unrolled])
@pytest.mark.parametrize("moves", MOVES, ids=lambda m: "".join("01"[x] for x in m))
def test_gradients_are_those_of_the_book(moves, loss_fn):
    layers = dm.layers_by_path(["embed", "blocks"], stacked="blocks")
    expected = by_the_book(weights(), moves)
    with jax.enable_x64():
        step = dm.value_and_grad(functools.partial(loss_fn, moves=moves), layers)
        params = jax.tree.map(jnp.asarray, weights())
        found = step(params, jnp.asarray(X), active=(True, *moves))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12),
        found,
        expected,
    )


def test_the_loss_is_bit_for_bit_that_of_the_whole_network():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights())
    x = jnp.asarray(X, jnp.float32)
    losses = {float(unrolled(params, x, moves)) for moves in MOVES}
    assert len(losses) == 1


@pytest.mark.parametrize("num_moving", range(LENGTH))
def test_dropped_branches_cost_no_backward_pass(num_moving):
    moves = tuple(j < num_moving for j in range(LENGTH))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights(width=32))
    x = jnp.tile(jnp.asarray(X, jnp.float32), (64, 1))
    layers = dm.layers_by_path(["embed", "blocks"], stacked="blocks")

    def cut(few, blocks, x):
        """The blocks that move are differentiated, the others add a constant."""
        h = x @ few["embed"]
        for j in range(LENGTH):
            w = few["blocks"][j] if moves[j] else blocks[j]
            branch = jnp.tanh((h if moves[j] else jax.lax.stop_gradient(h)) @ w)
            h = h + branch
        return jnp.sum(h**2)

    few = {**params, "blocks": params["blocks"][:num_moving]}
    step = dm.value_and_grad(functools.partial(unrolled, moves=moves), layers)
    ours = count_flops(functools.partial(step, active=(True, *moves)), params, x)
    theirs = count_flops(jax.value_and_grad(cut), few, params["blocks"], x)
    # What is added puts the rows' gradients in their places, whatever the batch.
    assert ours <= 1.02 * theirs


def test_a_tree_of_streams_goes_through():
    dropped = dm.drop_backward(lambda w, h: {"a": h["a"] * w, "b": h["b"] + h["a"]})
    h = {"a": jnp.float32(2.0), "b": jnp.float32(5.0)}
    loss = lambda w, h: dropped(w, h)["a"] + 3.0 * dropped(w, h)["b"]  # noqa: E731
    value, (dw, dh) = jax.value_and_grad(loss, argnums=(0, 1))(jnp.float32(4.0), h)
    assert float(value) == 8.0 + 3.0 * 7.0
    assert (float(dw), float(dh["a"]), float(dh["b"])) == (0.0, 1.0, 3.0)
