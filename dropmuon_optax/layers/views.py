"""Which axes of a leaf are a matrix's rows, which its columns, which count matrices."""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dropmuon_optax import checks
from dropmuon_optax.meshes import gathered
from dropmuon_optax.nouns import Noun


@dataclasses.dataclass(frozen=True, repr=False)
class View(Noun):
    """A leaf as matrices (fan_in, fan_out): the axes of each; the rest are a batch.

    Attributes:
      fan_in: axes whose product is the number of rows m, in order. Negative ones count
        from the end.
      fan_out: axes whose product is the number of columns n, in order.
      split: sizes n₁ + n₂ + … = n of the pieces along fan_out that are matrices of
        their own, each (m, nᵢ) with an oracle and a norm to itself; None is one piece.
      batch: the axes that count the matrices, in order; None is all that are left.

    Raises:
      ValueError: if a size isn't a positive whole number; from its methods, if it names
        an axis twice or one the leaf lacks, or the sizes don't add up.

    Examples:
      A 3×3 convolution, and attention queries (model, heads, head_dim) per head:

      >>> View((0, 1, 2), (3,)).matrix_shape((3, 3, 16, 32))
      (1, 144, 32)
      >>> View((0,), (2,)).matrix_shape((512, 8, 64))
      (8, 512, 64)

      Queries, keys and values in one kernel, with fewer heads for the latter:

      >>> View((0,), (1,), split=(512, 128, 128)).matrix_shapes((512, 768))
      [(1, 512, 512), (1, 512, 128), (1, 512, 128)]
    """

    fan_in: tuple[int, ...]
    fan_out: tuple[int, ...]
    split: tuple[int, ...] | None = None
    batch: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("fan_in", "fan_out", "split", "batch"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _whole_numbers(name, value))
        if self.split is not None:
            if not self.split:
                raise ValueError("`split` must have at least one size, got ()")
            for size in self.split:
                checks.positive_int("split", size)

    def _axes(self, ndim: int) -> tuple[list[int], list[int], list[int]]:
        """Batch, row and column axes of a leaf of `ndim` axes."""
        named = [*self.fan_in, *self.fan_out, *(self.batch or ())]
        if any(not -ndim <= axis < ndim for axis in named):
            raise ValueError(f"`view` must name axes of {ndim}, got {self}")
        rows = [axis % ndim for axis in self.fan_in]
        columns = [axis % ndim for axis in self.fan_out]
        rest = [axis for axis in range(ndim) if axis not in rows + columns]
        batch = rest if self.batch is None else [axis % ndim for axis in self.batch]
        if len({*rows, *columns}) < len(rows + columns) or sorted(batch) != rest:
            raise ValueError(f"`view` must name every axis once, got {self}")
        return batch, rows, columns

    def over(self, axis: int, ndim: int) -> "View":
        """The view of a leaf of `ndim` axes whose slices along `axis` have this one.

        Examples:
          >>> View((0,), (1,)).over(1, 3)
          View((0,), (2,), batch=(1,))
        """
        batch, rows, columns = (
            tuple(i + (i >= axis) for i in part) for part in self._axes(ndim - 1)
        )
        return View(rows, columns, self.split, (axis, *batch))

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(number of matrices, fan_in, fan_out) of a leaf, before the split.

        Raises:
          ValueError: if the leaf has too few axes for this view.
        """
        b, m, n = (math.prod(shape[i] for i in part) for part in self._axes(len(shape)))
        return b, m, n

    def matrix_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
        """(number of matrices, fan_in, fan_out) of each piece.

        Raises:
          ValueError: if the leaf has too few axes, or its fan_out is another than the
            sizes of the split add up to.
        """
        b, m, n = self.matrix_shape(shape)
        sizes = (n,) if self.split is None else self.split
        if sum(sizes) != n:
            raise ValueError(
                f"`split` must add up to fan_out, the {n} columns of axes "
                f"{self.fan_out}, got {sizes}, which are {sum(sizes)}"
            )
        return [(b, m, size) for size in sizes]

    def is_plain(self, ndim: int) -> bool:
        """Whether the leaf is a matrix, or a stack of them, already: axis for axis."""
        batch, rows, columns = self._axes(ndim)
        one_each = len(batch) <= 1 and len(rows) == len(columns) == 1
        return one_each and [*batch, *rows, *columns] == list(range(ndim))

    def to_matrices(self, x: Array) -> Array:
        """`x` as an array (number of matrices, fan_in, fan_out), before the split.

        A sharded leaf is gathered before its axes are moved: only a plain matrix can be
        stacked as it lies.
        """
        if self.is_plain(x.ndim):
            return x[None] if x.ndim == 2 else x
        batch, rows, columns = self._axes(x.ndim)
        moved = jnp.transpose(gathered(x), (*batch, *rows, *columns))
        return moved.reshape(self.matrix_shape(x.shape))

    def from_matrices(self, y: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `to_matrices`: matrices back to a leaf of this shape."""
        if self.is_plain(len(shape)):
            return y[0] if len(shape) == 2 else y
        batch, rows, columns = self._axes(len(shape))
        order = [*batch, *rows, *columns]
        moved = y.reshape([shape[axis] for axis in order])
        return jnp.transpose(moved, [order.index(axis) for axis in range(len(shape))])

    def to_pieces(self, x: Array) -> list[Array]:
        """`x` as the matrices that its norm sees: an array for each piece."""
        shapes = self.matrix_shapes(x.shape)
        if len(shapes) == 1:
            return [self.to_matrices(x)]
        ends = np.cumsum([n for _, _, n in shapes])[:-1].tolist()
        return jnp.split(gathered(self.to_matrices(x)), ends, axis=2)

    def from_pieces(self, pieces: Sequence[Array], shape: tuple[int, ...]) -> Array:
        """The inverse of `to_pieces`: matrices back to a leaf of this shape."""
        whole = pieces[0]
        if len(pieces) > 1:
            whole = jnp.concatenate([gathered(piece) for piece in pieces], axis=2)
        return self.from_matrices(whole, shape)


def _whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(number) for number in value)
    except TypeError:
        raise ValueError(
            f"`{name}` must be a tuple of whole numbers, got {value!r}"
        ) from None


SCALAR = View((), ())
VECTOR = View((), (-1,))  # 1 × n over the last axis; leading axes are a batch
DENSE = View((-2,), (-1,))  # fan_in × fan_out; leading axes are a batch
HEADS_MERGED = View((0,), (1, 2))  # (model, heads, head_dim): all heads in one matrix
PER_HEAD_IN = View((0,), (2,))  # (model, heads, head_dim): a matrix for each head
PER_HEAD_OUT = View((1,), (2,))  # (heads, head_dim, model): a matrix for each head
