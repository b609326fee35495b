"""Which axes of a leaf are a matrix's rows, which its columns, which count matrices."""

import dataclasses
import math
import re

import jax.numpy as jnp
from jaxtyping import Array

from dropmuon_optax.nouns import Noun

_VECTOR_NAMES = re.compile(
    r"^(bias|b|scale|gamma|beta|offset|shift|gain|mean|var)(_\w+)?$"
)
_ATTENTION_INPUT_NAMES = re.compile(r"^(query|key|value|qkv|q|k|v|[qkv]_proj)$")
_ATTENTION_OUTPUT_NAMES = re.compile(r"^(out|o|o_proj|out_proj|output|c_proj)$")


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


def default_view(path: str, shape: tuple[int, ...], *, attribute: bool = False) -> View:
    """The view of a leaf by its name and number of axes.

    - names of vectors (`bias`, `scale`, …) and leaves of one axis: 1 × n, any leading
      axes a batch;
    - `…/query|key|value/kernel` of three axes (model, heads, head_dim): all heads in
      one matrix (model, heads·head_dim). For one matrix per head give `PER_HEAD_IN`;
    - everything else: the last axis is fan_out, all before it are fan_in. That fits
      dense kernels (I, O), convolutions (W, I, O), (H, W, I, O), (D, H, W, I, O) and
      attention outputs (heads, head_dim, model);
    - attributes, as in Equinox modules: a `weight` has fan_out first, (O, I, …); the
      bias of a convolution, (O, 1, 1), is one vector.

    A leaf stacked over layers by a scan can't be told from a convolution by its shape:
    say so with `Stacked`.

    Args:
      path: the leaf's path, keys joined by "/".
      shape: the leaf's shape.
      attribute: whether the path's last key is a class attribute, not a dictionary key.

    Returns:
      A view whose `matrix_shape` fits.

    Examples:
      >>> default_view("conv/kernel", (3, 3, 1, 8)).matrix_shape((3, 3, 1, 8))
      (1, 9, 8)
      >>> default_view("blocks/bias", (12, 64)).matrix_shape((12, 64))
      (12, 1, 64)
    """
    ndim = len(shape)
    if ndim == 0:
        return SCALAR
    if ndim == 1 or is_vector_name(path):
        one = attribute and all(side == 1 for side in shape[1:])
        return View((), tuple(range(ndim))) if one else VECTOR
    if ndim == 3 and _is_attention_input(path):
        return HEADS_MERGED
    if attribute and path.rpartition("/")[2] == "weight":
        return View(tuple(range(1, ndim)), (0,))
    return View(tuple(range(ndim - 1)), (ndim - 1,))


def is_vector_name(path: str) -> bool:
    """Whether the last key of the path names a vector, such as `bias` or `scale`."""
    return bool(_VECTOR_NAMES.match(path.rpartition("/")[2]))


def is_attention(path: str) -> bool:
    """Whether the path names a projection of an attention layer, not a convolution."""
    out = _ATTENTION_OUTPUT_NAMES.match(path.rpartition("/")[0].rpartition("/")[2])
    return _is_attention_input(path) or bool(out and "att" in path.lower())


def _is_attention_input(path: str) -> bool:
    keys = path.split("/")
    return any(_ATTENTION_INPUT_NAMES.match(key) for key in keys[-2:])
