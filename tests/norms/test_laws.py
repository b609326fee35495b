"""The laws of every norm, on every shape, dtype and kind of matrix.

To put a new norm under them, add one line to `NORMS`. Norms and dual norms are compared
with `numpy.linalg` in float64, never with themselves.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax import linalg, norms


def spectral(x):
    return np.linalg.norm(x, 2)


def nuclear(x):
    return np.linalg.norm(x, "nuc")


def column(x):
    return np.linalg.norm(x, axis=0).max()


def columns(x):
    return np.linalg.norm(x, axis=0).sum()


def rms(x):
    return math.sqrt((x * x).mean())


class Case(NamedTuple):
    norm: norms.Norm
    value: object  # ‖x‖ in NumPy
    dual: object  # ‖g‖⋆ in NumPy
    # Where an oracle puts a singular value that should be 1: exact ones on 1, the
    # others where the certificate of their polynomial says (tests/linalg).
    low: float = 1.0
    high: float = 1.0


fro = np.linalg.norm
NORMS = [
    Case(norms.Spectral(num_steps=None), spectral, nuclear),
    Case(norms.Spectral(), spectral, nuclear, 0.68, 1.2025),
    Case(norms.Spectral(5, linalg.YOU_JIACHENG), spectral, nuclear, 0.9, 1.15),
    Case(
        norms.Spectral(4, linalg.YOU_JIACHENG, preconditioning="schatten"),
        spectral,
        nuclear,
        0.9,
        1.15,
    ),
    Case(norms.Spectral(9, linalg.POLAR_EXPRESS), spectral, nuclear, 0.999, 1.001),
    Case(norms.Frobenius(), fro, fro),
    Case(norms.Column(), column, columns),
    Case(norms.Row(), lambda x: column(x.T), lambda g: columns(g.T)),
    Case(norms.MaxEntry(), lambda x: abs(x).max(), lambda g: abs(g).sum()),
    Case(norms.RMS(), rms, lambda g: g.size * rms(g)),
    Case(
        norms.Scaled(norms.Frobenius(), 3.0), lambda x: 3 * fro(x), lambda g: fro(g) / 3
    ),
    Case(
        norms.Scaled(norms.Spectral(num_steps=None), norms.Monomial(fan_in=1.0)),
        lambda x: len(x) * spectral(x),
        lambda g: nuclear(g) / len(g),
    ),
]
SHAPES = [(6, 6), (9, 4), (4, 9), (1, 7), (7, 1), (1, 1)]
# All shapes in float32; the narrow dtypes, which differ in rounding alone, on two.
SHAPES_AND_DTYPES = [(shape, "float32") for shape in SHAPES] + [
    (shape, dtype) for shape in [(9, 4), (4, 9)] for dtype in ("bfloat16", "float16")
]
RADIUS = 2.5

every_norm = pytest.mark.parametrize("case", NORMS, ids=lambda case: repr(case.norm))
every_shape_and_dtype = pytest.mark.parametrize(
    ("shape", "dtype"), SHAPES_AND_DTYPES, ids=str
)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])


def matrices(shape, dtype):
    """Full rank, rank one, one large entry, and entries from 1e-3 to 1e3."""
    rng = np.random.default_rng(7)
    full = rng.standard_normal(shape)
    low = np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1]))
    spike = 1e-2 * full
    spike[0, 0] = 5.0
    spread = full * 10.0 ** rng.uniform(-3, 3, shape)
    return [jnp.asarray(g, dtype) for g in (full, low, spike, spread)]


class Measured(NamedTuple):
    value: jax.Array
    dual: jax.Array
    step: jax.Array
    sharp: jax.Array


@functools.cache
def program(norm):
    """All four of a norm's functions in one program, compiled once for each shape."""
    return jax.jit(
        lambda g: Measured(
            norm.norm(g), norm.dual_norm(g), norm.lmo(g, RADIUS), norm.sharp(g)
        )
    )


def double(x):
    return np.asarray(x, np.float64)


def epsilon(dtype):
    return float(jnp.finfo(dtype).eps)


def tolerance(dtype, size):
    # A result's entries are rounded to the dtype once, and sums of `size` products of
    # float32 carry about size roundings; 4 is room for the factors in between.
    return 4 * (epsilon(dtype) + size * epsilon("float32"))


@every_shape_and_dtype
@every_norm
def test_norm_and_dual_norm_are_numpys(case, shape, dtype):
    for x in matrices(shape, dtype):
        rtol = tolerance("float32", x.size)
        found = program(case.norm)(x)
        np.testing.assert_allclose(found.value, case.value(double(x)), rtol)
        np.testing.assert_allclose(found.dual, case.dual(double(x)), rtol)


@every_shape_and_dtype
@every_norm
def test_lmo_attains_the_dual_norm_and_stays_in_the_ball(case, shape, dtype):
    for g in matrices(shape, dtype):
        step = program(case.norm)(g).step
        assert step.shape == g.shape
        assert step.dtype == g.dtype
        tol = tolerance(dtype, g.size)
        attained = -np.sum(double(g) * double(step)) / RADIUS
        dual = case.dual(double(g))
        assert case.low * (1 - tol) * dual <= attained <= case.high * (1 + tol) * dual
        assert case.value(double(step)) <= RADIUS * case.high * (1 + tol)


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)], ids=str)
@every_norm
def test_no_feasible_point_does_better(case, shape):
    rng = np.random.default_rng(3)
    g = matrices(shape, "float32")[0]
    best = np.sum(double(g) * double(program(case.norm)(g).step))
    for _ in range(200):
        x = rng.standard_normal(shape)
        x *= RADIUS / case.value(x)
        assert np.sum(double(g) * x) >= best / case.low * (
            1 + tolerance("float32", g.size)
        )


@every_dtype
@every_norm
def test_zero_goes_to_zero(case, dtype):
    zero = jnp.zeros((4, 9), dtype)
    assert all(not found.any() for found in program(case.norm)(zero))


@every_norm
def test_powers_of_two_change_nothing(case):
    # 2^±100 is about 1e±30. Powers of two are exact, hence no tolerance.
    for g in matrices((9, 4), "float32")[:3]:
        step = program(case.norm)(g).step
        for exponent in (-100, -40, 40, 100):
            scaled = program(case.norm)(g * jnp.float32(2.0**exponent)).step
            np.testing.assert_array_equal(scaled, step)


@every_norm
@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        ("float16", 2.0**14),  # entries up to 6e4: their squares overflow
        ("float16", 2.0**-22),  # subnormal entries
        ("bfloat16", 2.0**126),
        ("bfloat16", 2.0**-110),
        ("float32", 2.0**126),
        ("float32", 2.0**-110),
    ],
)
def test_low_precision_has_its_whole_range(case, dtype, factor):
    """The same entries, brought near 1 in float64, give the same step."""
    full = matrices((9, 4), "float32")[0]
    g = jnp.asarray(double(full) * factor, dtype)
    assert jnp.isfinite(g).all()
    unit = jnp.asarray(double(g) / factor, "float32")
    expected = program(case.norm)(unit).step.astype(dtype)
    # One rounding to the dtype on either side, and float32's own in the oracle.
    np.testing.assert_allclose(
        double(program(case.norm)(g).step),
        double(expected),
        rtol=2 * epsilon(dtype),
        atol=1e-5 * RADIUS,
    )


@every_norm
def test_a_stack_is_a_loop(case):
    stack = jnp.stack([matrices((4, 9), "float32")[i] for i in range(4)])
    loop = jnp.stack([program(case.norm)(g).step for g in stack])
    # Batched matrix products may sum in another order: a few ulps.
    np.testing.assert_allclose(
        jax.vmap(program(case.norm))(stack).step, loop, rtol=1e-5, atol=1e-5
    )


@every_dtype
@every_norm
def test_one_non_finite_entry_makes_no_plausible_step(case, dtype):
    for bad in (math.nan, math.inf, -math.inf):
        g = matrices((4, 9), dtype)[0].at[1, 2].set(bad)
        found = program(case.norm)(g)
        assert jnp.isnan(found.step).all()
        assert jnp.isnan(found.sharp).all()
        assert not jnp.isfinite(found.value)
        assert not jnp.isfinite(found.dual)


@every_norm
def test_sharp_operator(case):
    for g in matrices((4, 9), "float32"):
        sharp = double(program(case.norm)(g).sharp)
        dual = case.dual(double(g))
        tol = tolerance("float32", g.size)
        assert case.value(sharp) <= case.high * dual * (1 + tol)
        inner = np.sum(double(g) * sharp)
        assert inner >= case.low * dual**2 * (1 - tol)


@every_norm
def test_double_precision_is_kept(case):
    with jax.enable_x64():
        g = jnp.asarray(np.random.default_rng(1).standard_normal((5, 4)))
        assert g.dtype == "float64"
        found = program(case.norm)(g)
        assert all(x.dtype == "float64" for x in found)
        np.testing.assert_allclose(found.value, case.value(double(g)), 1e-13)
        np.testing.assert_allclose(found.dual, case.dual(double(g)), 1e-13)


@every_norm
def test_nouns_compare_hash_and_print(case):
    assert hash(case.norm) == hash(case.norm)
    assert "0x" not in repr(case.norm)
    assert case.norm != norms.Scaled(norms.MaxEntry(), 7.0)


@pytest.mark.usefixtures("without_type_checks")
@every_norm
def test_what_is_no_matrix_is_refused(case):
    for method in (case.norm.norm, case.norm.dual_norm, case.norm.lmo, case.norm.sharp):
        with pytest.raises(ValueError, match=r"must be a matrix of shape \(m, n\)"):
            method(jnp.zeros((2, 3, 4)))
        with pytest.raises(ValueError, match="must be real floating-point, got int32"):
            method(jnp.zeros((2, 3), jnp.int32))


def test_radius_may_be_traced_but_not_negative():
    g = jnp.ones((2, 2))
    steps = jax.jit(norms.MaxEntry().lmo)(g, jnp.float32(0.25))
    np.testing.assert_array_equal(steps, np.full((2, 2), -0.25))
    with pytest.raises(ValueError, match=r"`radius` must be in \[0.0, inf\), got -1.0"):
        norms.MaxEntry().lmo(g, -1.0)
