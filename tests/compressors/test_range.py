"""Compressors over the whole range of float32 and bfloat16."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax.compressors import Natural
from tests.compressors.test_compressor_laws import COMPRESSORS, double, has_factors

SHAPE = (24, 40)
LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
BFLOAT16_LARGEST = float(jnp.finfo(jnp.bfloat16).max)
NUM_KEYS = 32
SCALES = {
    "float32": [1e-45, 1.2e-38, 1e-30, 1e20, 2.6e38, LARGEST],
    "bfloat16": [1e-40, 1.2e-38, BFLOAT16_LARGEST],
}
every_compressor = pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)


def kinds():
    """Matrices whose largest entry is 1, in float64."""
    rng = np.random.default_rng(3)
    found = [rng.standard_normal(SHAPE), np.ones(SHAPE), np.eye(*SHAPE)]
    return [x / abs(x).max() for x in found]


@functools.cache
def program(compressor):
    def run(x, key):
        return compressor.decompress(compressor.compress(x, key=key), x.shape)

    return jax.jit(jax.vmap(run, (None, 0)))


def alpha_at(compressor, scale):
    """α; where a power of two is out of reach, Natural's error is 1/2 and not 1/3."""
    alpha = compressor.alpha(SHAPE)
    parts = [compressor, *(getattr(compressor, n, None) for n in ("outer", "inner"))]
    parts += [getattr(part, "inner", None) for part in parts if part is not None]
    natural = any(isinstance(part, Natural) for part in parts)
    return alpha * 0.75 / (8 / 9) if natural and scale > 2.5e38 else alpha


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_compressor
def test_contraction_over_the_whole_range(compressor, dtype, key):
    """Finite stays finite, and no loss but α's, or a smallest normal number an entry.

    The smallest normal is what XLA's arithmetic takes for zero.
    """
    keys = jax.random.split(key, NUM_KEYS if compressor.random else 1)
    for scale in SCALES[dtype]:
        for kind in kinds():
            with np.errstate(under="ignore"):
                x = jnp.asarray((kind * scale).astype(dtype))
            found = double(program(compressor)(x, keys))
            assert np.isfinite(found).all(), scale
            given = double(x)
            # In units of the scale, for squares of these numbers are no float64s.
            errors = ((found - given) / scale) ** 2
            unit = ((given / scale) ** 2).sum()
            loss = errors.sum((1, 2))
            margin = 4 * loss.std() / math.sqrt(len(keys))
            lost = TINY / scale
            room = 2 * lost * math.sqrt(kind.size * unit) + kind.size * lost**2
            alpha = alpha_at(compressor, scale)
            assert loss.mean() <= (1 - alpha + 1e-5) * unit + margin + room, scale


@every_compressor
def test_what_is_not_subnormal_does_not_come_back_as_zero(compressor, key):
    keys = jax.random.split(key, NUM_KEYS)
    for scale in (1e-36, LARGEST):
        for kind in kinds()[:2]:
            x = jnp.asarray(kind * scale, jnp.float32)
            assert np.any(np.asarray(program(compressor)(x, keys)) != 0), scale


@pytest.mark.parametrize("scale", [1.2e-38, LARGEST])
@pytest.mark.parametrize("compressor", [c for c in COMPRESSORS if has_factors(c)][:4])
def test_factors_keep_their_digits_at_both_ends(compressor, scale, key):
    """A matrix of rank one is kept whole, where P and Q in one unit can't be."""
    x = np.outer(np.ones(24), np.ones(40))
    found = double(program(compressor)(jnp.asarray(x * scale, jnp.float32), key[None]))
    # What the other factors add, some 1e-4 of it, is subnormal at the lower end.
    np.testing.assert_allclose(found[0] / scale, x, rtol=1e-3)
