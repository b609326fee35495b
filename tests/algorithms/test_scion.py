"""Scion's ball: starting on it, staying in it, reaching its optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dropmuon_optax as dm

EXACT = dm.norms.Spectral(num_steps=None)
GEOMETRY = [
    ("conv", dm.norms.scion_conv(3, 3, inner=EXACT), 2.0),
    ("kernel", dm.norms.scion_spectral(EXACT), 5.0),
    ("head", dm.norms.scion_sign(), 16.0),
    ("embed", dm.norms.scion_row(), 1.0),
    ("bias", dm.norms.RMS(), 0.5),
]


def params():
    return {
        "conv": jnp.zeros((3, 3, 2, 8)),
        "kernel": jnp.zeros((6, 4)),
        "head": jnp.zeros((8, 3)),
        "embed": jnp.zeros((11, 4)),
        "bias": jnp.full(4, 0.25),
    }


def value(norm, leaf):
    """‖leaf‖ in NumPy, from the published formulas."""
    x = np.asarray(leaf, np.float64).reshape(-1, leaf.shape[-1])
    m, n = x.shape
    return {
        "conv": lambda: 9 * np.sqrt(2 / 8) * np.linalg.norm(x, 2),
        "kernel": lambda: np.sqrt(m / n) * np.linalg.norm(x, 2),
        "head": lambda: m * np.abs(x).max(),
        "embed": lambda: np.linalg.norm(x, axis=1).max() / np.sqrt(n),
        "bias": lambda: np.sqrt(np.mean(x**2)),
    }[norm]()


def test_initial_weights_lie_on_the_ball(key):
    layers = dm.layers_by_path(None, GEOMETRY)
    start = dm.init_on_ball(params(), layers, key=key)
    for name, _, radius in GEOMETRY[:-1]:
        assert value(name, start[name]) == pytest.approx(radius, rel=1e-5)
        assert start[name].dtype == params()[name].dtype
    np.testing.assert_array_equal(start["bias"], params()["bias"])  # vectors stay
    other = dm.init_on_ball(params(), layers, key=jax.random.key(1))
    assert not np.allclose(start["kernel"], other["kernel"])


def test_initial_weights_need_a_radius(key):
    layers = dm.layers_by_path(None, [("", EXACT, dm.AdaptiveRadius(1.0, 1.0))])
    with pytest.raises(ValueError, match="leaf 'w' must have a fixed radius"):
        dm.init_on_ball({"w": jnp.ones((2, 2))}, layers, key=key)


def test_constrained_weights_never_leave_the_ball(key):
    layers = dm.layers_by_path(None, GEOMETRY)
    x = dm.init_on_ball(params(), layers, key=key)
    tx = dm.scion(0.3, layers)
    state = tx.init(x)
    for k in range(30):
        keys = jax.random.split(jax.random.fold_in(key, k), len(x))
        g = {
            name: jax.random.normal(one, x[name].shape)
            for one, name in zip(keys, x, strict=True)
        }
        updates, state = tx.update(g, state, x)
        x = optax.apply_updates(x, updates)
        for name, _, radius in GEOMETRY:
            assert value(name, x[name]) <= radius * (1 + 1e-5)


LARGEST = 1.2024  # of Keller Jordan's polynomial over [0, 1], at σ = 0.0041


def last_norms(norm, values, radius=8.0):
    """‖X‖₂ in radii, step by step, where the gradient has always these values."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(24, len(values))))
    v, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    g = jnp.asarray(-(u * values) @ v, jnp.float32)
    tx = dm.scion(0.1, dm.layers_by_path(None, [("", norm, radius)]))
    x = jnp.zeros(g.shape)
    state, found = tx.init(x), []
    update = jax.jit(tx.update)
    for _ in range(120):
        updates, state = update(g, state, x)
        x = optax.apply_updates(x, updates)
        found.append(np.linalg.norm(np.asarray(x, np.float64), 2) / radius)
    return np.array(found)


@pytest.mark.parametrize(
    ("norm", "least", "most"),
    [
        (dm.norms.Spectral(), 1.19, LARGEST),
        (EXACT, 0.999, 1.0),
        (dm.norms.Spectral(8, dm.linalg.POLAR_EXPRESS), 0.999, 1.0),
    ],
    ids=["default", "exact", "polar express"],
)
def test_the_ball_is_as_exact_as_the_oracle(norm, least, most):
    # The first value is Frobenius-normalized to 1, the last to where p is largest.
    found = last_norms(norm, np.array([1.0, 0.02, 0.0041115]))
    assert found.max() <= most * (1 + 1e-5)
    assert found[-1] >= least


@pytest.mark.parametrize(
    ("rate", "least", "most"), [(0.01, 0.72, 0.84), (0.001, 0.2, 0.34)]
)
def test_bfloat16_stalls_and_float32_masters_do_not(rate, least, most):
    layers = dm.layers_by_path(None, [("", dm.norms.RMS(), 1.5)])
    tx = dm.scion(rate, layers)

    def loss(x):
        return -x.astype(jnp.bfloat16).sum()

    @jax.jit
    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jax.grad(loss)(x), state, x)
        return (optax.apply_updates(x, updates), state), None

    ends = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        x = jnp.zeros(4, dtype)
        (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=10_000)
        ends[dtype] = np.asarray(x, np.float64) / 1.5
    assert np.all((ends[jnp.bfloat16] >= least) & (ends[jnp.bfloat16] <= most))
    np.testing.assert_allclose(ends[jnp.float32], 1.0, rtol=1e-4)


def test_unconstrained_steps_are_as_long_as_the_radius_says():
    layers = dm.layers_by_path(None, GEOMETRY)
    tx = dm.scion(0.1, layers, constrained=False)
    g = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), params())
    updates, _ = tx.update(g, tx.init(params()), params())
    for name, _, radius in GEOMETRY:
        assert value(name, updates[name]) == pytest.approx(0.1 * radius, rel=1e-5)


def test_momentum_is_the_weight_of_the_old_buffer():
    layers = dm.layers_by_path(None, [("", dm.norms.MaxEntry(), 1.0)])
    tx = dm.scion(1.0, layers, momentum=0.9, constrained=False)
    x = jnp.zeros(2)
    state = tx.init(x)
    _, state = tx.update(jnp.array([1.0, 1.0]), state, x)
    # M = 0.9·0.1·1 + 0.1·g is still positive for g = −0.5, negative for g = −1.
    updates, _ = tx.update(jnp.array([-0.5, -1.0]), state, x)
    np.testing.assert_array_equal(updates, [-1.0, 1.0])


def test_weight_decay_beside_the_constraint_is_refused():
    with pytest.raises(
        ValueError,
        match="`weight_decay` must be 0, without a mask, where `constrained`",
    ):
        dm.gluon(0.1, constrained=True, weight_decay=0.1)


@pytest.mark.parametrize("optimizer", [dm.gluon, dm.muon, dm.scion])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": -0.1}, "`learning_rate` must be in"),
        (
            {"learning_rate": 0.1, "momentum": 1.0},
            r"`momentum` must be in \[0.0, 1.0\)",
        ),
        ({"learning_rate": 0.1, "momentum": -0.5}, "`momentum` must be in .* got -0.5"),
        ({"learning_rate": "fast"}, "`learning_rate` must be a number"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_bad_hyperparameters_are_refused(optimizer, kwargs, message):
    with pytest.raises(ValueError, match=message):
        optimizer(**kwargs)
