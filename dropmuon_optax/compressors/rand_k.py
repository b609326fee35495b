"""Rand-K: entries chosen at random."""

import dataclasses
import math
from typing import ClassVar, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt32

from dropmuon_optax import checks
from dropmuon_optax.compressors.base import Compressor, check_fraction, num_kept
from dropmuon_optax.compressors.blocks import Blocks

MAX_BLOCK = 2**16  # so that a·i fits 32 bits


@final
@dataclasses.dataclass(frozen=True, repr=False)
class RandK(Compressor):
    """Rand-K, unscaled: k random entries of every block as they are, zero elsewhere.

    The matrix is cut as by `TopK`, into blocks of b entries, k = round(fraction·b). In
    each the kept positions are (a·i + c) mod b for i = 0, …, k − 1: k distinct ones,
    with c uniform and a uniform among the numbers that have no factor in common with
    b, drawn for every block by itself (up to a bias of b·2⁻³²). Every entry is thus
    kept with probability k/b, so E‖C(x) − x‖² = (1 − k/b)‖x‖² and α = k/b. Not every
    subset of k is possible: the law is no uniform one, only its marginals are.

    Rand-K times b/k, the unbiased compressor of the literature, is not contractive
    where k < b/2: its mean squared error is (b/k − 1)‖x‖².

    Payload: `values`, float32 of shape (k, blocks); `seed`, uint32 of shape (2,), from
    which both sides derive the positions. They are never sent.

    Attributes:
      fraction: the fraction of the entries to keep, in (0, 1].
      block: the largest number of entries of a block, at most 65536.

    Raises:
      ValueError: if `fraction` is not in (0, 1], or `block` is no whole number or too
        large. For a shape of whose blocks the fraction rounds to nothing, every method
        raises.

    Examples:
      >>> rand = RandK(0.25)
      >>> payload = rand.compress(jnp.ones((2, 4)), key=jax.random.key(0))
      >>> rand.decompress(payload, (2, 4)).sum()
      Array(2., dtype=float32)

    References:
      Beznosikov et al., On biased compression for distributed learning,
      arXiv:2002.12410, on scaling and contraction.
    """

    fraction: float
    block: int = 256

    random: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction(self.fraction)
        checks.positive_int("block", self.block)
        if self.block > MAX_BLOCK:
            raise ValueError(f"`block` must be at most {MAX_BLOCK}, got {self.block!r}")

    def alpha(self, shape):
        """The share k/b of a block that is kept."""
        blocks, kept = self._plan(shape)
        return kept / blocks.length

    def _compress(self, x, state, key, arrives):
        del arrives
        blocks, kept = self._plan(x.shape)
        seed = jax.random.bits(key, (2,), jnp.uint32)
        values = blocks.take(blocks.split(x), _positions(seed, blocks, kept))
        return {"values": values, "seed": seed}, state

    def _decompress(self, payload, shape):
        blocks, kept = self._plan(shape)
        index = _positions(payload["seed"], blocks, kept)
        return blocks.put(payload["values"], index, shape)

    def _plan(self, shape):
        blocks = Blocks.of(shape, self.block)
        return blocks, num_kept("fraction", self.fraction, blocks.length, "entries")


def _positions(
    seed: UInt32[Array, "2"], blocks: Blocks, kept: int
) -> Int32[Array, "k count"]:
    """Positions (a·i + c) mod b of every block."""
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    words = jax.random.bits(key, (2, blocks.count), jnp.uint32)
    length = np.uint32(blocks.length)
    coprime = [a for a in range(1, blocks.length + 1) if math.gcd(a, blocks.length) < 2]
    stride = jnp.array(coprime, jnp.uint32)[words[0] % np.uint32(len(coprime))]
    start = words[1] % length
    steps = jnp.arange(kept, dtype=jnp.uint32)[:, None] * stride[None] % length
    return ((steps + start[None]) % length).astype(jnp.int32)
