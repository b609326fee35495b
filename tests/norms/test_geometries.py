"""Scion's and Muon's published geometries in float64, and compositions of norms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax import linalg, norms
from tests.reference import oracles

EXACT = norms.Spectral(num_steps=None)
GEOMETRIES = [
    (norms.scion_spectral(EXACT), (12, 5), oracles.scion_spectral),
    (norms.scion_spectral(EXACT), (5, 12), oracles.scion_spectral),
    (norms.scion_conv(3, 3, inner=EXACT), (36, 8), lambda g: oracles.scion_conv(g, 3)),
    (norms.scion_conv(5, 5, inner=EXACT), (50, 3), lambda g: oracles.scion_conv(g, 5)),
    (norms.scion_sign(), (7, 4), oracles.scion_sign),
    (norms.scion_bias(), (1, 9), oracles.scion_bias),
    (norms.scion_row(), (7, 4), oracles.scion_input_rows),
    (norms.scion_column(), (7, 4), oracles.scion_output_columns),
    (
        norms.muon_spectral(EXACT),
        (5, 12),
        lambda g: np.sqrt(max(1, g.shape[1] / g.shape[0])) * oracles.polar(g),
    ),
    (
        norms.muon_spectral(EXACT),
        (12, 5),
        lambda g: np.sqrt(max(1, g.shape[1] / g.shape[0])) * oracles.polar(g),
    ),
    (
        norms.consistent_rms(inner=EXACT),
        (12, 5),
        lambda g: 0.2 * np.sqrt(12) * oracles.polar(g),
    ),
    (
        norms.consistent_rms(0.3, EXACT),
        (5, 12),
        lambda g: 0.3 * np.sqrt(12) * oracles.polar(g),
    ),
]


def label(value):
    return "NumPy" if callable(value) else str(value)  # functions print addresses


@pytest.mark.parametrize(("norm", "shape", "maximizer"), GEOMETRIES, ids=label)
def test_equals_its_published_definition(norm, shape, maximizer):
    g = np.random.default_rng(2).standard_normal(shape)
    with jax.enable_x64():
        step = norm.lmo(jnp.asarray(g), 3.0)
    np.testing.assert_allclose(step, -3.0 * maximizer(g), rtol=1e-12, atol=1e-13)


def test_a_one_dimensional_convolution_divides_by_its_width():
    # SpectralConv of a kernel (k, C_in, C_out) is √(C_out/C_in)/k·UVᵀ.
    g = np.random.default_rng(2).standard_normal((3 * 4, 8))
    with jax.enable_x64():
        step = norms.scion_conv(3, inner=EXACT).lmo(jnp.asarray(g))
    expected = -np.sqrt(8 / 4) / 3 * oracles.polar(g)
    np.testing.assert_allclose(step, expected, rtol=1e-12, atol=1e-13)


def test_any_callable_may_orthogonalize():
    g = jnp.asarray(np.random.default_rng(0).standard_normal((6, 20)), "float32")
    gram = functools.partial(linalg.gram_newton_schulz, num_steps=4)
    found = norms.Spectral(orthogonalize=gram).lmo(g)
    np.testing.assert_allclose(found, norms.Spectral(4).lmo(g), atol=1e-5)


def test_the_products_dtype_and_precision_reach_the_program():
    g = jnp.ones((4, 8))
    norm = norms.Spectral(dtype="bfloat16", precision="highest")
    program = str(jax.make_jaxpr(norm.lmo)(g))
    assert "bf16" in program
    assert "Precision.HIGHEST" in program
    assert norm.lmo(g).dtype == "float32"


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: norms.Spectral(num_steps=0), "`num_steps` must be a whole number"),
        (lambda: norms.Spectral(6, linalg.CANS), "`num_steps` must be at most 5"),
        (lambda: norms.Spectral(5, "keller"), "`coefficients` must be a `linalg.Coe"),
        (lambda: norms.Spectral(dtype="int8"), "`dtype` must be a floating-point"),
        (
            lambda: norms.Spectral(3, orthogonalize=linalg.polar_factor),
            "`num_steps` must be left alone",
        ),
        (lambda: norms.Spectral(orthogonalize=3), "`orthogonalize` must be a function"),
        (lambda: norms.Scaled(norms.RMS(), 0.0), r"`factor` must be in \(0.0, inf\)"),
        (lambda: norms.Scaled(norms.RMS(), -2), r"`factor` must be in .*, got -2"),
        (lambda: norms.Scaled("rms", 1.0), "`inner` must be a norm, got 'rms'"),
        (lambda: norms.Monomial(constant=0.0), "`constant` must be in"),
        (lambda: norms.scion_conv(3, 0), "`kernel_size` must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_equal_geometries_are_equal_and_hash_alike():
    assert norms.scion_spectral() == norms.scion_spectral()
    assert hash(norms.scion_conv(3, 3)) == hash(norms.scion_conv(3, 3))
    assert norms.scion_conv(3, 3) != norms.scion_conv(5, 5)


@pytest.mark.parametrize(
    "call",
    [
        "muon_spectral()",
        "scion_spectral(inner=Spectral(num_steps=3))",
        "scion_conv(3, 5)",
        "scion_conv(3, inner=Frobenius())",
        "scion_sign()",
        "scion_column()",
        "scion_row()",
        "consistent_rms()",
        "consistent_rms(0.3, inner=Frobenius())",
    ],
)
def test_geometries_print_as_the_calls_that_make_them(call):
    norm = eval(call, vars(norms))
    assert repr(norm) == call
    # What is made of one has its own name again.
    assert repr(dataclasses.replace(norm, factor=2.0)) == f"Scaled({norm.inner!r}, 2.0)"


@pytest.mark.parametrize("constant", [0.0, -1.0, float("inf")])
def test_a_factor_is_positive_and_finite(constant):
    with pytest.raises(ValueError, match="`constant` must be"):
        norms.LongSide(0.5, constant)
    with pytest.raises(ValueError, match="`constant` must be"):
        norms.Monomial(constant=constant)
    with pytest.raises(ValueError, match="`factor` must be"):
        norms.Scaled(norms.RMS(), constant)


def test_a_factor_may_be_small():
    assert norms.LongSide(1.0, 0.25)(4, 8) == 2.0
    assert norms.Monomial(fan_in=1.0, constant=0.25, at_most=0.5)(4, 8) == 0.5
