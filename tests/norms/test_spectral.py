"""The form of the spectral norm's oracle, and that either is the same polynomial."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax import counters, linalg, norms
from dropmuon_optax.linalg.preconditioning import PRECONDITIONINGS
from dropmuon_optax.norms.spectral import GRAM_ASPECT

# Of the largest entry of 1: float32's roundings grow by the polynomial's slope (some
# 500 at 0, times 2⁻²⁴); narrower results are rounded once at the end.
TOLERANCE = {"float64": 1e-12, "float32": 3e-5, "bfloat16": 5e-3, "float16": 7e-4}


def polynomial(g, steps=5, abc=(3.4445, -4.7750, 2.0315)):
    """Keller Jordan's, of the singular values, by SVD in float64."""
    a, b, c = abc
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sides", [(12, 12), (12, 20), (12, 24), (12, 60)], ids=str)
@pytest.mark.parametrize("tall", [False, True])
def test_either_form_is_the_same_polynomial(sides, tall, dtype):
    with jax.enable_x64(dtype == "float64"):
        g = np.random.default_rng(0).standard_normal(sides)
        g = jnp.asarray(g.T if tall else g, dtype)
        step = norms.Spectral().lmo(g)
        assert step.dtype == dtype
        expected = -polynomial(np.asarray(g.astype("float32"), np.float64))
        if dtype == "float64":
            expected = -polynomial(np.asarray(g))
        np.testing.assert_allclose(
            np.asarray(step, np.float64), expected, atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("tall", [False, True])
def test_long_matrices_take_the_gram_form(tall):
    for long, products in ((12, 15), (int(12 * GRAM_ASPECT) - 1, 15), (24, 18)):
        g = jnp.ones((long, 12) if tall else (12, long))
        counts = counters.count_primitives(norms.Spectral().lmo, g)
        assert counts["dot_general"] == products


@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS)
@pytest.mark.parametrize("num_steps", [4, 5, 8])
@pytest.mark.parametrize("shape", [(192, 192), (192, 288), (192, 384), (768, 192)])
def test_the_flops_are_those_of_the_compiled_program(shape, num_steps, preconditioning):
    for coefficients in (linalg.KELLER_JORDAN, linalg.POLAR_EXPRESS):
        norm = norms.Spectral(num_steps, coefficients, preconditioning=preconditioning)
        compiled = counters.count_flops(norm.lmo, jnp.ones(shape))
        assert norm.num_flops(shape) == pytest.approx(compiled, rel=0.02)


def test_flops_that_are_not_known_are_refused():
    for norm in (norms.Spectral(num_steps=None), norms.Spectral(orthogonalize=abs)):
        with pytest.raises(ValueError, match="`num_flops` must be asked of a norm wi"):
            norm.num_flops((2, 2))
