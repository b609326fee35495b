"""Layers outside the set that take another step instead of standing still."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dropmuon_optax as dm
from dropmuon_optax import counters
from tests.reference import drop_muon as box

KEY = jax.random.key(5)
STEPS, B = 6, 3
ORDER = ["embed", r"block_(\d)"]
SHAPES = {"embed": (5, 3), "block_0": (4, 3), "block_1": (3, 4)}
SPECTRAL = dm.layers_by_path(ORDER, [("", dm.norms.Spectral(num_steps=None), 2.0)])
SIGN = dm.layers_by_path(ORDER, [("", dm.norms.MaxEntry(), 0.3)])
SAMPLINGS = [
    dm.samplings.Periodic(2),
    dm.samplings.Progressive(),
    dm.samplings.Independent((0.5, 0.3, 0.6)),
]
every_sampling = pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)


def tree(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def train(tx, start, gradients, actives):
    """Parameters and states after each step; `actives` holds sets, or None to draw."""

    @functools.partial(jax.jit, static_argnames="active")
    def step(params, state, g, active):
        updates, state = tx.update(g, state, params, active=active)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, start)
    state, found = tx.init(params), []
    for g, active in zip(gradients, actives, strict=True):
        params, state = step(params, state, jax.tree.map(jnp.asarray, g), active)
        found.append((params, state))
    return found


@pytest.mark.parametrize("static", [True, False], ids=["static", "sampled"])
@every_sampling
def test_the_trajectory_is_that_of_the_box(sampling, static):
    noise = [tree(10 + k) for k in range(STEPS)]
    drawn = [dm.active_layers(sampling, B, KEY, k) for k in range(STEPS)]
    rate = lambda k: 0.2 - 0.02 * k  # noqa: E731
    expected = box.drop_muon(
        tree(0),
        lambda x, k: noise[k],
        {name: i for i, name in enumerate(SHAPES)},
        [{i for i in range(B) if active[i]} for active in drawn],
        dict.fromkeys(SHAPES, box.spectral),
        lambda name, k: 2.0 * rate(k),
        beta=0.3,
        outside=dict.fromkeys(SHAPES, lambda m, k: -0.3 * rate(k) * np.sign(m)),
    )
    with jax.enable_x64():
        schedule = lambda k: 0.2 - 0.02 * k.astype(jnp.float64)  # noqa: E731
        tx = dm.drop_muon(
            schedule, SPECTRAL, sampling, key=KEY, momentum=0.7, outside=SIGN
        )
        actives = drawn if static else [None] * STEPS
        found = train(tx, tree(0), noise, actives)
    for (params, _), wanted in zip(found, expected, strict=True):
        for name, x in params.items():
            np.testing.assert_allclose(x, wanted[name], rtol=1e-9, atol=1e-9)


def test_rows_of_a_stack_step_each_by_their_own_norm():
    norms = {"inside": dm.norms.Frobenius(), "outside": dm.norms.MaxEntry()}
    layers = {
        key: dm.layers_by_path(["embed", "blocks"], [("", norm, 1.0)], stacked="blocks")
        for key, norm in norms.items()
    }
    params = {"embed": jnp.ones((2, 2)), "blocks": jnp.ones((3, 2, 2))}
    rng = np.random.default_rng(0)
    grads = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params
    )
    sampling = dm.samplings.Independent((0.5,) * 4)
    tx = dm.drop_muon(
        1.0,
        layers["inside"],
        sampling,
        key=KEY,
        outside=layers["outside"],
        momentum=0.0,
    )
    active = (False, True, False, True)
    updates, state = tx.update(grads, tx.init(params), params, active=active)
    np.testing.assert_array_equal(updates["embed"], -np.sign(grads["embed"]))
    g, u = (np.asarray(x["blocks"], np.float64) for x in (grads, updates))
    np.testing.assert_array_equal(u[1], -np.sign(g[1]))
    for row in (0, 2):
        np.testing.assert_allclose(u[row], -g[row] / np.linalg.norm(g[row]), rtol=1e-6)
    for moved in grads.values():  # all momenta move
        momentum = [x for x in jax.tree.leaves(state) if x.shape == moved.shape]
        np.testing.assert_array_equal(momentum[0], moved)


def test_inside_the_set_it_is_gluon_and_outside_it_is_sign_descent():
    params = jax.tree.map(jnp.asarray, tree(0))
    grads = [tree(20 + k) for k in range(2)]
    arguments = {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True}
    either = dm.drop_muon(
        *(0.1, SPECTRAL, dm.samplings.Periodic(2)),
        key=KEY,
        outside=SIGN,
        **arguments,
    )
    for layers, active in ((SPECTRAL, (True,) * B), (SIGN, (False,) * B)):
        found = train(either, params, grads, [active] * 2)
        expected = train(dm.gluon(0.1, layers, **arguments), params, grads, [None] * 2)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
            found[-1][0],
            expected[-1][0],
        )


def test_a_step_outside_multiplies_no_matrices():
    layers = dm.layers_by_path(ORDER, [("", dm.norms.Spectral(), 2.0)])
    tx = dm.drop_muon(0.1, layers, dm.samplings.Periodic(2), key=KEY, outside=SIGN)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree(0))
    products = [
        counters.count_primitives(
            functools.partial(tx.update, active=active), params, tx.init(params), params
        )["dot_general"]
        for active in ((True,) * B, (True, False, False), (False,) * B)
    ]
    assert products[0] > products[1] > products[2] == 0


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_outside_is_refused():
    sampling = dm.samplings.Periodic(2)
    with pytest.raises(ValueError, match="`outside` must be a function"):
        dm.drop_muon(0.1, SPECTRAL, sampling, key=KEY, outside="sign")
    compressor = dm.compressors.Identity()
    inner = dm.ef21_muon(
        0.1, SPECTRAL, compressor, axis_name="w", num_workers=1, key=KEY
    )
    with pytest.raises(ValueError, match="`outside` must be None for an `inner` that"):
        dm.drop_layers(inner, SPECTRAL, sampling, key=KEY, outside=SIGN)
