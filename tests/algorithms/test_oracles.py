"""Muon, Scion and Gluon against their NumPy boxes: 20 steps of one noisy problem.

Exact polar factors in float64 agree to 1e-10, Newton–Schulz in float32 to 1e-5 of the
largest entry (the relative error of an entry near zero means nothing).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dropmuon_optax as dm
from tests.reference import boxes, oracles

STEPS = 20
KERNELS = {"square": (6, 6), "tall": (12, 5), "wide": (5, 12), "conv": (3, 3, 4, 8)}


def problem(seed=0):
    """Start, target and one noise array for each step: g = X − target + noise."""
    rng = np.random.default_rng(seed)
    shapes = {**KERNELS, "bias": (7,), "head/kernel": (6, 10), "embed/table": (11, 4)}
    start = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    target = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    noise = [
        {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
        for _ in range(STEPS)
    ]
    return start, target, noise


def matrix(x):
    return x.reshape(-1, x.shape[-1])


def run_ours(tx, dtype):
    start, target, noise = problem()
    cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)  # noqa: E731
    x, target = cast(start), cast(target)
    state = tx.init(x)

    @jax.jit
    def step(x, state, noise):
        g = jax.tree.map(lambda x, y, z: x - y + z, x, target, noise)
        updates, state = tx.update(g, state, x)
        return optax.apply_updates(x, updates), state

    for z in noise:
        x, state = step(x, state, cast(z))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(x))
    return x


def run_box(step_of):
    """`step_of(name)` returns (step, first state); step(x, state, g) -> (x, state)."""
    start, target, noise = problem()
    end = {}
    for name, x in start.items():
        step, state = step_of(name, x)
        for z in noise:
            x, state = step(x, state, x - target[name] + z[name])
        end[name] = x
    return end


def assert_agree(ours, box, rtol):
    for name, expected in box.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours[name], expected, rtol=rtol, atol=rtol * scale)


def in_matrix_form(step):
    """Runs a step on the matrix view (all axes but the last are fan_in)."""

    def reshaped(x, m, g):
        y, n = step(matrix(x), matrix(m), matrix(g))
        return y.reshape(x.shape), n.reshape(x.shape)

    return reshaped


def is_adam(name):
    return name in ("bias", "head/kernel", "embed/table")


def muon_box(orthogonalize, *, nesterov, decay, schedule, adam_nesterov=False):
    def step_of(name, x):
        k = [0]

        def adam(x, state, g):
            return boxes.adamw_step(
                x,
                state,
                g,
                lr=schedule(state[2]),
                b1=0.9,
                b2=0.95,
                eps=1e-10,
                decay=decay,
                nesterov=adam_nesterov,
            )

        def muon(x, m, g):
            k[0] += 1
            return boxes.muon_step(
                x,
                m,
                g,
                lr=schedule(k[0] - 1),
                beta=0.95,
                decay=decay,
                nesterov=nesterov,
                orthogonalize=orthogonalize,
            )

        if is_adam(name):
            return adam, (np.zeros_like(x), np.zeros_like(x), 0)
        return in_matrix_form(muon), np.zeros_like(x)

    return step_of


def exact_muon_layers():
    def geometry(path, shape):
        norm, radius = dm.muon_geometry(path, shape)
        if norm is not None:
            norm = dm.norms.muon_spectral(dm.norms.Spectral(num_steps=None))
        return norm, radius

    return dm.layers_by_path(None, geometry)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adam_nesterov", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_with_exact_polar_factors(nesterov, adam_nesterov, decay):
    schedule = lambda k: 0.1 - 0.0045 * jnp.asarray(k, "float64")  # noqa: E731
    box = run_box(
        muon_box(
            oracles.polar,
            nesterov=nesterov,
            decay=decay,
            schedule=lambda k: 0.1 - 0.0045 * k,
            adam_nesterov=adam_nesterov,
        )
    )
    with jax.enable_x64():
        tx = dm.muon(
            schedule,
            exact_muon_layers(),
            nesterov=nesterov,
            weight_decay=decay,
            adam_weight_decay=decay,
            adam_nesterov=adam_nesterov,
        )
        assert_agree(run_ours(tx, "float64"), box, 1e-10)


@pytest.mark.usefixtures("standard_promotion")
def test_muon_with_newton_schulz_from_step_1():
    box = run_box(
        muon_box(
            oracles.newton_schulz, nesterov=True, decay=0.0, schedule=lambda k: 0.02
        )
    )
    assert_agree(run_ours(dm.muon(0.02), "float32"), box, 1e-5)


MAXIMIZERS = {
    "square": oracles.scion_spectral,
    "tall": oracles.scion_spectral,
    "wide": oracles.scion_spectral,
    "conv": lambda g, **kwargs: oracles.scion_conv(g, 3, **kwargs),
    "bias": oracles.scion_bias,
    "head/kernel": oracles.scion_sign,
    "embed/table": oracles.scion_input_rows,
}
RADII = {"bias": 0.25, "head/kernel": 16.0}


def maximizer(name, orthogonalize):
    if name in KERNELS:
        return lambda g: MAXIMIZERS[name](g, orthogonalize=orthogonalize)
    return MAXIMIZERS[name]


def exact_scion_layers():
    exact = dm.norms.Spectral(num_steps=None)

    def geometry(path, shape):
        norm, radius = dm.scion_geometry(path, shape)
        if path in KERNELS:
            norm = dm.norms.Scaled(exact, norm.factor)
        return norm, radius

    return dm.layers_by_path(None, geometry)


def scion_box(orthogonalize, *, constrained, radius=1.0):
    def step_of(name, x):
        def step(x, m, g):
            return boxes.scion_step(
                x,
                m,
                g,
                lr=0.05,
                alpha=0.1,
                radius=radius * RADII.get(name, 1.0),
                maximizer=maximizer(name, orthogonalize),
                constrained=constrained,
            )

        return in_matrix_form(step), np.zeros_like(x)

    return step_of


@pytest.mark.parametrize("constrained", [True, False])
def test_scion_with_exact_polar_factors(constrained):
    box = run_box(scion_box(oracles.polar, constrained=constrained))
    with jax.enable_x64():
        tx = dm.scion(0.05, exact_scion_layers(), constrained=constrained)
        assert_agree(run_ours(tx, "float64"), box, 1e-10)


@pytest.mark.parametrize("constrained", [True, False])
def test_scion_with_newton_schulz(constrained):
    layers = dm.layers_by_path(None, dm.scion_geometry)
    box = run_box(scion_box(oracles.newton_schulz, constrained=constrained))
    tx = dm.scion(0.05, layers, constrained=constrained)
    assert_agree(run_ours(tx, "float32"), box, 1e-5)


def gluon_box(schedule, momentum):
    def step_of(name, x):
        k = [0]

        def step(x, m, g):
            k[0] += 1
            t = schedule(k[0] - 1) * RADII.get(name, 1.0)
            beta = momentum(k[0] - 1)
            return boxes.gluon_step(
                x, m, g, t=t, beta=beta, maximizer=maximizer(name, oracles.polar)
            )

        return in_matrix_form(step), np.zeros_like(x)

    return step_of


def test_gluon_constant_radius():
    box = run_box(gluon_box(lambda k: 0.05, lambda k: 0.9))
    with jax.enable_x64():
        tx = dm.gluon(0.05, exact_scion_layers(), 0.9)
        assert_agree(run_ours(tx, "float64"), box, 1e-10)


def test_gluon_stochastic_rule_of_theorem_2():
    box = run_box(
        gluon_box(lambda k: 0.3 * (k + 1) ** -0.75, lambda k: 1 - (k + 1) ** -0.5)
    )
    with jax.enable_x64():
        tx = dm.gluon(
            dm.gluon_learning_rate_schedule(0.3),
            exact_scion_layers(),
            dm.gluon_momentum_schedule(),
        )
        assert_agree(run_ours(tx, "float64"), box, 1e-10)


def test_gluon_adaptive_rule_of_theorem_1():
    l0, l1 = 2.0, 0.7
    nuclear = lambda g: np.linalg.svd(g, compute_uv=False).sum()  # noqa: E731

    def step_of(name, x):
        def step(x, m, g):
            t = boxes.gluon_adaptive_radius(g, nuclear, l0, l1)
            return boxes.gluon_step(x, m, g, t=t, beta=0.0, maximizer=oracles.polar)

        return in_matrix_form(step), np.zeros_like(x)

    spectral = dm.norms.Spectral(num_steps=None)
    with jax.enable_x64():
        layers = dm.layers_by_path(None, [("", spectral, dm.AdaptiveRadius(l0, l1))])
        assert_agree(
            run_ours(dm.gluon(1.0, layers, 0.0), "float64"), run_box(step_of), 1e-10
        )


def test_gluon_in_the_frobenius_norm_is_normalized_sgd_with_momentum():
    frobenius = dm.layers_by_path(None, [("", dm.norms.Frobenius(), 1.0)])
    with jax.enable_x64():
        ours = run_ours(dm.gluon(0.05, frobenius, 0.9), "float64")
        other = run_ours(
            optax.chain(
                optax.ema(0.9, debias=False),
                optax.stateless(
                    lambda g, _: jax.tree.map(lambda x: x / jnp.sqrt((x * x).sum()), g)
                ),
                optax.scale(-0.05),
            ),
            "float64",
        )
    for name, expected in other.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-10, atol=1e-12)
