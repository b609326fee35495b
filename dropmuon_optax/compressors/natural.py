"""Natural compression: a sign and a power of two for every entry."""

import dataclasses
import math
from typing import ClassVar, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from dropmuon_optax.compressors.base import Compressor

MANTISSA = 0x7FFFFF  # the 23 bits of a float32's mantissa
HALF = 0x400000  # the mantissa of 1.5
LARGEST = 254  # the exponent of the largest finite float32s; 255 is not finite


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Natural(Compressor):
    """Natural compression: every entry becomes a power of two, with its sign.

    v = ±2ᵉ(1 + f), f ∈ [0, 1), goes to the nearer one of ±2ᵉ and ±2ᵉ⁺¹, up from
    f = 1/2 on. The error relative to v is f/(1 + f) below 1/2 and (1 − f)/(1 + f) from
    there on, at most 1/3 either way, so α = 1 − 1/9 = 8/9. Stochastic rounding goes up
    with probability f instead: unbiased, with a variance of f(1 − f)/(1 + f)² times v²,
    at most 1/8 (at f = 1/3), so α = 7/8. Nearest is the default, for it has the smaller
    error, needs no random bits, and error feedback has no use for unbiasedness.

    Subnormal numbers, below 1.2e-38, count as zero, as they do in XLA's arithmetic;
    what would round up to 2¹²⁸ goes down to 2¹²⁷ (from 2.6e38 on, an error of 1/2).

    Payload, 9 bits: `exponents`, uint8 of shape (m, n), the exponent field of float32;
    `signs`, uint8 of shape (⌈mn/8⌉,), eight entries a byte. Payload, 8 bits: `codes`,
    uint8 of shape (m, n), a sign and an exponent of 7 bits relative to the matrix's
    largest, which is `largest`, uint8 of shape (1,); entries below 2⁻¹²⁶ of the largest
    count as zero.

    Attributes:
      stochastic: whether to round at random, which takes a key.
      bits: bits an entry, 9 or 8.

    Raises:
      ValueError: if `bits` is neither 8 nor 9, or `stochastic` is no bool.

    Examples:
      >>> natural = Natural()
      >>> payload = natural.compress(jnp.array([[1.0, -1.4, 1.5, 0.0]]))
      >>> natural.decompress(payload, (1, 4))
      Array([[ 1., -1.,  2.,  0.]], dtype=float32)
      >>> natural.num_bits((8, 8)) / 64
      9.0

    References:
      Horváth et al., Natural compression for distributed deep learning,
      arXiv:1905.10988, for the stochastic one. The bound for the nearest is ours.
    """

    stochastic: bool = False
    bits: int = 9

    holds_floats: ClassVar[bool] = False
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.stochastic, bool):
            raise ValueError(f"`stochastic` must be a bool, got {self.stochastic!r}")
        if self.bits not in (8, 9):
            raise ValueError(f"`bits` must be 8 or 9, got {self.bits!r}")

    @property
    def random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether rounding is stochastic."""
        return self.stochastic

    def alpha(self, shape):
        """8/9 to the nearest, 7/8 at random."""
        del shape
        return 7 / 8 if self.stochastic else 8 / 9

    def _compress(self, x, state, key, arrives):
        del arrives
        words = jax.lax.bitcast_convert_type(x, jnp.uint32)
        exponents = self._exponents(words, key)
        signs = (words >> 31).astype(jnp.uint8)
        if self.bits == 9:
            packed = jnp.packbits(signs.reshape(-1))
            return {"exponents": exponents, "signs": packed}, state
        largest = jnp.max(exponents)
        below = largest - exponents
        relative = jnp.where((exponents == 0) | (below > 126), 0, 127 - below)
        return {"codes": signs << 7 | relative, "largest": largest[None]}, state

    def _exponents(self, words: UInt32[Array, "m n"], key):
        """The exponent fields after rounding, as uint8."""
        mantissa = words & MANTISSA
        exponents = (words >> 23 & 0xFF).astype(jnp.uint8)
        if self.stochastic:
            up = jax.random.bits(key, words.shape, jnp.uint32) >> 9 < mantissa
        else:
            up = mantissa >= HALF
        up &= (exponents > 0) & (exponents < LARGEST)
        return exponents + up.astype(jnp.uint8)

    def _decompress(self, payload, shape):
        if self.bits == 9:
            exponents = payload["exponents"]
            size = math.prod(shape)
            signs = jnp.unpackbits(payload["signs"], count=size).reshape(shape)
        else:
            codes, largest = payload["codes"], payload["largest"][None]
            relative = codes & 127
            below = jnp.minimum(127 - relative, largest)
            exponents = jnp.where(relative == 0, 0, largest - below)
            signs = codes >> 7
        words = signs.astype(jnp.uint32) << 31 | exponents.astype(jnp.uint32) << 23
        return jax.lax.bitcast_convert_type(words, jnp.float32)

    def _poison(self, payload, finite):
        if self.bits == 9:
            poisoned = {"exponents": jnp.uint8(255)}
        else:
            poisoned = {"codes": jnp.uint8(127), "largest": jnp.uint8(255)}
        return payload | {
            name: jnp.where(finite, payload[name], value)
            for name, value in poisoned.items()
        }
