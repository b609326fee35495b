"""Scaled sign: one bit an entry."""

import dataclasses
import math
from typing import ClassVar, final

import jax.numpy as jnp

from dropmuon_optax.compressors.base import Compressor
from dropmuon_optax.linalg import unit_scale


@final
@dataclasses.dataclass(frozen=True, repr=False)
class ScaledSign(Compressor):
    """Scaled sign: C(x) = (‖x‖₁/d)·sign(x) for the d = mn entries of x.

    It is the orthogonal projection onto the line of sign(x), whose error is
    ‖x‖² − ‖x‖₁²/d. So it contracts x itself with ‖x‖₁²/(d‖x‖²), 2/π = 0.64 for Gaussian
    entries, and any x with α = 1/d at least, attained where one entry is not zero. It
    contracts in no spectral norm. A zero is coded as positive, which the projection
    allows, and comes back as +‖x‖₁/d; a matrix of zeros has scale 0 and stays zero.

    Payload: `scale`, float32 of shape (1, 1); `signs`, uint8 of shape (⌈mn/8⌉,), eight
    entries a byte.

    Examples:
      >>> sign = ScaledSign()
      >>> sign.decompress(sign.compress(jnp.array([[3.0, -1.0]])), (1, 2))
      Array([[ 2., -2.]], dtype=float32)

    References:
      Karimireddy et al., Error feedback fixes SignSGD, arXiv:1901.09847, Lemma 8.
    """

    symmetric: ClassVar[bool] = True

    def alpha(self, shape):
        """1/d, what is left for the worst matrix."""
        return 1 / math.prod(shape)

    def _compress(self, x, state, key, arrives):
        del key, arrives
        unit, scale = unit_scale(x)
        mean = (scale * jnp.mean(jnp.abs(unit)))[None, None]
        return {"scale": mean, "signs": jnp.packbits((x < 0).reshape(-1))}, state

    def _decompress(self, payload, shape):
        negative = jnp.unpackbits(payload["signs"], count=math.prod(shape))
        scale = jnp.broadcast_to(payload["scale"], shape)
        return jnp.where(negative.reshape(shape) > 0, -scale, scale)
