"""Absent layers: not run, not differentiated, entering without a jump."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dropmuon_optax as dm
from dropmuon_optax.counters import count_flops
from dropmuon_optax.samplings import Grown, StochasticDepth

LENGTH, WIDTH = 4, 8
LAYERS = dm.layers_by_path(order=["embed", "blocks", "head"], stacked="blocks")
PRESENT = list(itertools.product([False, True], repeat=LENGTH))
KEY = jax.random.key(0)


def network(outputs=1.0):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape) / 2, "float32")  # noqa: E731
    blocks = {
        "up": {"kernel": normal(LENGTH, WIDTH, WIDTH)},
        "down": {"kernel": outputs * normal(LENGTH, WIDTH, WIDTH)},
    }
    return {
        "embed": {"kernel": normal(5, WIDTH)},
        "blocks": blocks,
        "head": {"kernel": normal(WIDTH, 3)},
    }


def residual(block, h):
    return h + jnp.tanh(h @ block["up"]["kernel"]) @ block["down"]["kernel"]


def loss_fn(params, x, present=None, active=None):
    h = x @ params["embed"]["kernel"]
    h = dm.scan_layers(residual, params["blocks"], h, active, present)
    return jnp.sum((h @ params["head"]["kernel"]) ** 2)


def by_hand(params, x, present):
    """The network of the layers that are there, one after the other."""
    h = x @ params["embed"]["kernel"]
    for j in range(LENGTH):
        if present[j]:
            h = residual(jax.tree.map(lambda leaf, j=j: leaf[j], params["blocks"]), h)
    return jnp.sum((h @ params["head"]["kernel"]) ** 2)


X = jnp.asarray(np.random.default_rng(1).standard_normal((6, 5)), "float32")


def assert_close(found, expected):
    # Sums of a few hundred float32 products of order one, in two orders.
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize("present", PRESENT, ids=lambda p: "".join("01"[x] for x in p))
def test_loss_and_gradient_are_those_of_the_network_that_is_there(present):
    params = network()
    moves = (True, *present, True)
    loss = functools.partial(loss_fn, present=present)
    value, grads = dm.value_and_grad(loss, LAYERS)(params, X, active=moves)
    expected = jax.value_and_grad(functools.partial(by_hand, present=present))
    assert_close((value, grads), expected(params, X))
    absent = ~np.array(present)
    for leaf in jax.tree.leaves(grads["blocks"]):
        assert not leaf[absent].any()


@pytest.mark.parametrize("num_present", range(LENGTH))
def test_absent_layers_cost_no_flops(num_present):
    present = tuple(j < num_present for j in range(LENGTH))
    params, x = network(), jnp.tile(X, (64, 1))
    few = {
        **params,
        "blocks": jax.tree.map(lambda leaf: leaf[:num_present], params["blocks"]),
    }

    def cut(few, x):
        h = x @ few["embed"]["kernel"]
        for j in range(num_present):
            h = residual(jax.tree.map(lambda leaf, j=j: leaf[j], few["blocks"]), h)
        return jnp.sum((h @ few["head"]["kernel"]) ** 2)

    def unrolled(params, x):
        h = x @ params["embed"]["kernel"]
        for j in range(LENGTH):  # a stack of one layer each, so that nothing is a loop
            one = jax.tree.map(lambda leaf, j=j: leaf[j : j + 1], params["blocks"])
            h = dm.scan_layers(residual, one, h, present=present[j : j + 1])
        return jnp.sum((h @ params["head"]["kernel"]) ** 2)

    gradient = dm.value_and_grad(unrolled, LAYERS)
    moves = (True, *present, True)
    ours = count_flops(functools.partial(gradient, active=moves), params, x)
    # What is added puts the rows' gradients in their places, whatever the batch.
    assert ours <= 1.02 * count_flops(jax.value_and_grad(cut), few, x)


def test_layers_enter_without_a_jump_and_with_a_fresh_state():
    sampling = Grown(((0, (True, True, False, True, False, True)), (5, (True,) * 6)))
    inner = dm.gluon(0.01, LAYERS)
    tx = dm.drop_layers(inner, LAYERS, sampling, key=KEY)
    present = dm.present_layers(sampling, 6, KEY, 0)
    params = dm.zero_outputs(network(), LAYERS, present, "down")
    first, state = params, tx.init(params)
    for step in range(5):
        moves = dm.active_layers(sampling, 6, KEY, step)
        present = dm.present_layers(sampling, 6, KEY, step)
        loss = functools.partial(loss_fn, present=present[1:-1])
        _, grads = dm.value_and_grad(loss, LAYERS)(params, X, active=moves)
        updates, state = tx.update(grads, state, params, active=moves)
        params = optax.apply_updates(params, updates)
    few = loss_fn(params, X, (True, False, True, False))
    assert float(few) == pytest.approx(float(loss_fn(params, X)), rel=1e-6)
    for name in ("up", "down"):
        new, old = (tree["blocks"][name]["kernel"] for tree in (params, first))
        np.testing.assert_array_equal(new[1::2], old[1::2])  # bit for bit
        assert np.all(np.any(new[::2] != old[::2], axis=(1, 2)))
    momenta = [
        leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state.inner)[0]
        if "blocks" in jax.tree_util.keystr(path)
    ]
    assert len(momenta) == 2
    for momentum in momenta:
        assert not momentum[1::2].any()
        assert momentum[::2].any()


def test_layers_enter_with_a_fresh_error_feedback_state():
    few, all_ = (True, True, False, True, False, True), (True,) * 6
    sampling = Grown(((0, few), (3, all_)))
    inner = dm.ef21_muon(
        *(0.01, LAYERS, dm.compressors.TopK(0.3)),
        axis_name="workers",
        num_workers=1,
        key=KEY,
    )
    tx = dm.drop_layers(inner, LAYERS, sampling, key=KEY)
    params = dm.zero_outputs(network(), LAYERS, few, "down")
    mesh = jax.make_mesh((1,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
    first = state = tx.init(params)

    def of_worker(params, state, active):
        loss = functools.partial(loss_fn, present=active[1:-1])
        local = dm.local_params(params, "workers")
        _, grads = dm.value_and_grad(loss, LAYERS)(local, X, active=active)
        updates, state = tx.update(grads, state, params, active=active)
        return optax.apply_updates(params, updates), state, jnp.zeros(())

    run = dm.worker_map(
        functools.partial(of_worker, active=few), "workers", state, mesh
    )
    for _ in range(3):
        params, state, _ = jax.jit(run)(params, state)
    moved = 0
    flat = jax.tree_util.tree_flatten_with_path(state.inner)[0]
    for (path, new), old in zip(flat, jax.tree.leaves(first.inner), strict=True):
        if "blocks" in jax.tree_util.keystr(path) and new.ndim >= 3:
            axis = new.shape.index(LENGTH)  # behind that of the workers, if there is
            rows = np.moveaxis(np.asarray(new), axis, 0)
            was = np.moveaxis(np.asarray(old), axis, 0)
            np.testing.assert_array_equal(rows[1::2], was[1::2])  # as at the beginning
            moved += bool(np.any(rows[::2] != was[::2]))
    assert moved >= 2
    before = loss_fn(params, X, few[1:-1])
    assert float(before) == pytest.approx(float(loss_fn(params, X)), rel=1e-6)


def test_outputs_of_layers_that_are_there_stay():
    present = (True, False, True, True, False, True)
    params = network()
    found = dm.zero_outputs(params, LAYERS, present, "down/kernel$")
    down = found["blocks"]["down"]["kernel"]
    assert not down[0].any()
    assert not down[3].any()
    np.testing.assert_array_equal(down[1:3], params["blocks"]["down"]["kernel"][1:3])
    found["blocks"]["down"] = params["blocks"]["down"]
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
    ("present", "outputs", "message"),
    [
        ((True,) * 5 + (False,), "down", r"found in none of layers \[5\]"),
        ((True, False) * 3, "out", r"got 'out', found in none of layers \[1, 3, 5\]"),
        ((True,) * 4, "down", "one bool for each of 6 layers"),
    ],
)
def test_layers_whose_outputs_are_not_named_are_refused(present, outputs, message):
    with pytest.raises(ValueError, match=message):
        dm.zero_outputs(network(), LAYERS, present, outputs)


def test_stochastic_depth_draws_each_layer_as_often_as_it_says():
    sampling = StochasticDepth((1.0, 0.3, 0.8, 1.0))
    sets = np.array([dm.present_layers(sampling, 4, KEY, k) for k in range(4000)])
    # Five standard deviations of 4000 coins.
    np.testing.assert_allclose(sets.mean(axis=0), (1, 0.3, 0.8, 1), atol=0.04)
    assert sets[:, [0, 3]].all()


@pytest.mark.parametrize(
    ("active", "present", "message"),
    [
        (None, (True,) * 3, "one bool for each of 4 layers"),
        (None, [True] * 5, "one bool for each of 4 layers"),
        ((True,) * 4, (True, True, True, False), "`present` must hold every layer of"),
    ],
)
def test_other_sets_are_refused(active, present, message):
    with pytest.raises(ValueError, match=message):
        loss_fn(network(), X, present, active)
