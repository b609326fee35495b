"""How a matrix is cut into blocks of entries that lie far apart."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float32, Integer


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A cut of a matrix's entries into `count` blocks of `length` entries each.

    Entry i of the flattened matrix is in block i mod count, and `count` has no factor
    in common with the numbers of rows and columns: neither two of `count` consecutive
    entries of a row nor of a column share a block, and the transpose has as many. A
    heavy row or column is thus spread over as many blocks as there are, where
    consecutive entries would put all of it in a few. The last entries of some blocks
    are padding: zeros.

    Attributes:
      length: the entries of a block.
      count: the number of blocks.
    """

    length: int
    count: int

    @classmethod
    def of(cls, shape: tuple[int, int], at_most: int | None) -> "Blocks":
        """The fewest such blocks of at most that many entries; None is one block.

        >>> Blocks.of((768, 3072), 256)
        Blocks(length=256, count=9217)
        """
        size = math.prod(shape)
        count = 1 if at_most is None else -(-size // at_most)
        while math.gcd(count, size) > 1:
            count += 1
        return cls(-(-size // count), count)

    def split(self, x: Float32[Array, "m n"]) -> Float32[Array, "length count"]:
        """The blocks of a matrix, as columns."""
        flat = jnp.pad(x.reshape(-1), (0, self.length * self.count - x.size))
        return flat.reshape(self.length, self.count)

    def take(
        self, x: Float32[Array, "length count"], index: Integer[Array, "k count"]
    ) -> Float32[Array, "k count"]:
        """The entries at `index` of each block."""
        return x.reshape(-1)[self._positions(index)]

    def put(
        self,
        values: Float32[Array, "k count"],
        index: Integer[Array, "k count"],
        shape: tuple[int, int],
    ) -> Float32[Array, "m n"]:
        """The matrix with `values` at `index` of each block, and zeros elsewhere."""
        flat = jnp.zeros(self.length * self.count, values.dtype)
        flat = flat.at[self._positions(index)].set(
            values, unique_indices=True, mode="promise_in_bounds"
        )
        return flat[: math.prod(shape)].reshape(shape)

    def _positions(self, index: Integer[Array, "k count"]) -> Array:
        return (
            index.astype(jnp.int32) * self.count
            + jnp.arange(self.count, dtype=jnp.int32)[None]
        )
