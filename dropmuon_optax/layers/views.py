"""Which axes of a leaf are a matrix's rows, which its columns, which count matrices."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array

from dropmuon_optax.nouns import Noun


@dataclasses.dataclass(frozen=True, repr=False)
class View(Noun):
    """A leaf as matrices (fan_in, fan_out): the axes of each; the rest are a batch.

    Attributes:
      fan_in: axes whose product is the number of rows m, in order. Negative ones count
        from the end.
      fan_out: axes whose product is the number of columns n, in order.

    Raises:
      ValueError: from its methods, if it names an axis twice or one the leaf lacks.

    Examples:
      A 3×3 convolution, and attention queries (model, heads, head_dim) per head:

      >>> View((0, 1, 2), (3,)).matrix_shape((3, 3, 16, 32))
      (1, 144, 32)
      >>> View((0,), (2,)).matrix_shape((512, 8, 64))
      (8, 512, 64)
    """

    fan_in: tuple[int, ...]
    fan_out: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "fan_in", tuple(self.fan_in))
        object.__setattr__(self, "fan_out", tuple(self.fan_out))

    def _axes(self, ndim: int) -> tuple[list[int], list[int], list[int]]:
        """Batch, row and column axes of a leaf of `ndim` axes."""
        named = [*self.fan_in, *self.fan_out]
        if any(not -ndim <= axis < ndim for axis in named):
            raise ValueError(f"`view` must name axes of {ndim}, got {self}")
        rows = [axis % ndim for axis in self.fan_in]
        columns = [axis % ndim for axis in self.fan_out]
        if len({*rows, *columns}) < len(named):
            raise ValueError(f"`view` must name every axis once, got {self}")
        batch = [axis for axis in range(ndim) if axis not in rows + columns]
        return batch, rows, columns

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(number of matrices, fan_in, fan_out) of a leaf of this shape.

        Raises:
          ValueError: if the leaf has too few axes for this view.
        """
        b, m, n = (math.prod(shape[i] for i in part) for part in self._axes(len(shape)))
        return b, m, n

    def is_plain(self, ndim: int) -> bool:
        """Whether the leaf is a matrix (fan_in, fan_out) already, axis for axis."""
        return self._axes(ndim) == ([], [0], [1])

    def to_matrices(self, x: Array) -> Array:
        """`x` as an array (number of matrices, fan_in, fan_out)."""
        if self.is_plain(x.ndim):
            return x[None]
        batch, rows, columns = self._axes(x.ndim)
        moved = jnp.transpose(x, (*batch, *rows, *columns))
        return moved.reshape(self.matrix_shape(x.shape))

    def from_matrices(self, y: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `to_matrices`: matrices back to a leaf of this shape."""
        if self.is_plain(len(shape)):
            return y[0]
        batch, rows, columns = self._axes(len(shape))
        order = [*batch, *rows, *columns]
        moved = y.reshape([shape[axis] for axis in order])
        return jnp.transpose(moved, [order.index(axis) for axis in range(len(shape))])


SCALAR = View((), ())
VECTOR = View((), (-1,))  # 1 × n over the last axis; leading axes are a batch
DENSE = View((-2,), (-1,))  # fan_in × fan_out; leading axes are a batch
HEADS_MERGED = View((0,), (1, 2))  # (model, heads, head_dim): all heads in one matrix
PER_HEAD_IN = View((0,), (2,))  # (model, heads, head_dim): a matrix for each head
PER_HEAD_OUT = View((1,), (2,))  # (heads, head_dim, model): a matrix for each head
