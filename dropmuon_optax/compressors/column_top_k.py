"""Top-K of the columns."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from dropmuon_optax.compressors.base import Compressor, check_fraction, num_kept
from dropmuon_optax.linalg import unit_scale


@final
@dataclasses.dataclass(frozen=True, repr=False)
class ColumnTopK(Compressor):
    """Column-wise Top-K: the k columns of largest Euclidean norm, and zero elsewhere.

    A column of a matrix (fan_in, fan_out) is one output unit. k = round(fraction·n) of
    n columns, and α = k/n: the k largest of n squared norms hold k/n of their sum.

    Payload: `values`, float32 of shape (m, k); `index`, the columns' numbers, of shape
    (k,), in uint8 if n ≤ 256, uint16 if n ≤ 65536, uint32 otherwise.

    Attributes:
      fraction: the fraction of the columns to keep, in (0, 1].

    Raises:
      ValueError: if `fraction` is not in (0, 1]. For a shape of whose columns it rounds
        to nothing, every method raises.

    Examples:
      >>> x = jnp.array([[3.0, 0.0, 1.0], [4.0, 4.0, 1.0]])
      >>> column = ColumnTopK(1 / 3)
      >>> column.decompress(column.compress(x), (2, 3))
      Array([[3., 0., 0.],
             [4., 0., 0.]], dtype=float32)
    """

    fraction: float

    def __post_init__(self) -> None:
        check_fraction(self.fraction)

    def alpha(self, shape):
        """The share k/n of the columns that are kept."""
        return self._kept(shape) / shape[1]

    def _compress(self, x, state, key, arrives):
        del key, arrives
        unit, _ = unit_scale(x)
        squares = jnp.sum(unit * unit, axis=0)
        _, index = jax.lax.top_k(squares, self._kept(x.shape))
        return {"values": x[:, index], "index": index.astype(_narrow(x.shape))}, state

    def _decompress(self, payload, shape):
        index = payload["index"].astype(jnp.int32)
        return jnp.zeros(shape, jnp.float32).at[:, index].set(payload["values"])

    def _kept(self, shape):
        return num_kept("fraction", self.fraction, shape[1], "columns")


def _narrow(shape):
    n = shape[1]
    return jnp.uint8 if n <= 256 else jnp.uint16 if n <= 65536 else jnp.uint32
