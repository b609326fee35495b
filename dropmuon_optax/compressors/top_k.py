"""Top-K: the largest entries of every block."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from dropmuon_optax import checks
from dropmuon_optax.compressors.base import Compressor, check_fraction, num_kept
from dropmuon_optax.compressors.blocks import Blocks


@final
@dataclasses.dataclass(frozen=True, repr=False)
class TopK(Compressor):
    """Top-K: the entries of largest magnitude of every block, and zero elsewhere."""

    fraction: float
    block: int | None = 256

    def __post_init__(self) -> None:
        check_fraction(self.fraction)
        if self.block is not None:
            checks.positive_int("block", self.block)

    def _plan(self, shape):
        blocks = Blocks.of(shape, self.block)
        return blocks, num_kept("fraction", self.fraction, blocks.length, "entries")

    def alpha(self, shape):
        """k entries of b: the largest ones hold k/b of the squares at least."""
        blocks, kept = self._plan(shape)
        return kept / blocks.length

    def _compress(self, x, state, key, arrives):
        del key, arrives
        blocks, kept = self._plan(x.shape)
        split = blocks.split(x)
        index = jax.lax.top_k(jnp.abs(split).T, kept)[1].T
        narrow = jnp.uint8 if blocks.length <= 256 else jnp.uint32
        return {
            "values": blocks.take(split, index),
            "index": index.astype(narrow),
        }, state

    def _decompress(self, payload, shape):
        blocks, _ = self._plan(shape)
        return blocks.put(payload["values"], payload["index"], shape)
