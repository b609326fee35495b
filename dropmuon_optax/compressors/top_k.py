"""Top-K: the largest entries of every block."""

import dataclasses
from typing import ClassVar, final

import jax.numpy as jnp

from dropmuon_optax import checks
from dropmuon_optax.compressors import selection
from dropmuon_optax.compressors.base import Compressor, check_fraction, num_kept
from dropmuon_optax.compressors.blocks import Blocks


@final
@dataclasses.dataclass(frozen=True, repr=False)
class TopK(Compressor):
    """Top-K: the k entries of largest magnitude of every block, and zero elsewhere.

    The entries are cut into blocks of b that lie far apart (see `Blocks`), b being at
    most `block`, and k = round(fraction·b). α = k/b: in a block, the mean of the k
    largest squares is at least the mean of all b, so they hold k/b of the block's sum
    of squares or more; summed over blocks, the same of the matrix's. A single block is
    Top-K as the papers have it, with the same α: what differs is how much more than α
    is kept of matrices whose large entries crowd together.

    Payload: `values`, float32 of shape (k, blocks), and where they stand, whichever is
    smaller: `index`, of the same shape, in uint8 if b ≤ 256, uint16 if b ≤ 65536,
    uint32 otherwise; or `bitmap`, uint8 of shape (⌈b/8⌉, blocks), one bit an entry.

    The selection takes no sort (see `selection.py`); of equal magnitudes, the first
    ones are kept.

    Attributes:
      fraction: the fraction of the entries to keep, in (0, 1].
      block: the largest number of entries of a block; None is the whole matrix.

    Raises:
      ValueError: if `fraction` is not in (0, 1], or `block` is no whole number. For a
        shape of whose blocks the fraction rounds to nothing, every method raises.

    Examples:
      >>> x = jnp.array([[3.0, -1.0, 0.5], [0.0, -4.0, 2.0]])
      >>> top = TopK(1 / 3)
      >>> top.decompress(top.compress(x), (2, 3))
      Array([[ 3.,  0.,  0.],
             [ 0., -4.,  0.]], dtype=float32)
      >>> 32 * 768 * 3072 / TopK(0.1).num_bits((768, 3072))
      7.876...

    References:
      Stich et al., Sparsified SGD with memory, arXiv:1809.07599, Lemma A.1.
    """

    fraction: float
    block: int | None = 256

    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction(self.fraction)
        if self.block is not None:
            checks.positive_int("block", self.block)

    def alpha(self, shape):
        """The share k/b of a block that is kept."""
        blocks, kept, _ = self._plan(shape)
        return kept / blocks.length

    def _compress(self, x, state, key, arrives):
        del key, arrives
        blocks, kept, narrow = self._plan(x.shape)
        split = blocks.split(x)
        bitmap = selection.largest(split, kept)
        index = selection.positions(bitmap, kept)
        values = blocks.take(split, index)
        if narrow is None:
            return {"values": values, "bitmap": bitmap}, state
        return {"values": values, "index": index.astype(narrow)}, state

    def _decompress(self, payload, shape):
        blocks, kept, narrow = self._plan(shape)
        if narrow is None:
            index = selection.positions(payload["bitmap"], kept)
        else:
            index = payload["index"]
        return blocks.put(payload["values"], index, shape)

    def _plan(self, shape):
        """The blocks, how many entries of each, and the index's dtype or None."""
        blocks = Blocks.of(shape, self.block)
        kept = num_kept("fraction", self.fraction, blocks.length, "entries")
        reaches = (dtype for dtype in (jnp.uint8, jnp.uint16, jnp.uint32))
        narrow = next(d for d in reaches if blocks.length - 1 <= jnp.iinfo(d).max)
        bitmap = -(-blocks.length // 8)
        return blocks, kept, None if bitmap < kept * narrow.dtype.itemsize else narrow
