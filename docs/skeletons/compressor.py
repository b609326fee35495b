"""The largest row, to be copied to `dropmuon_optax/compressors/<name>.py`."""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax.numpy as jnp
from jaxtyping import Array, Float32

from dropmuon_optax.compressors.base import Compressor, Payload, Shape, State


@final
@dataclasses.dataclass(frozen=True, repr=False)
class LargestRow(Compressor):
    """The row with the largest Euclidean norm; the others are zero.

    α = 1/m in the Frobenius norm: the largest of m squares is at least their mean.

    Examples:
      >>> c = LargestRow()
      >>> c.decompress(c.compress(jnp.array([[1.0, 1.0], [0.0, 3.0]])), (2, 2))
      Array([[0., 0.],
             [0., 3.]], dtype=float32)
    """

    # Say of yourself what is not so by default: `random`, `stateful`, `symmetric`, …

    def alpha(self, shape: Shape) -> float:
        """1/m, of a matrix (m, n)."""
        return 1 / shape[0]

    def _compress(
        self, x: Float32[Array, "m n"], state: State, key: Any, arrives: Callable
    ) -> tuple[Payload, State]:
        del key, arrives  # not random, and nothing to remember
        which = jnp.argmax(jnp.sum(x * x, axis=1))
        # The shapes of a payload depend on x's shape alone; integers are unsigned.
        return {"row": x[which][None], "which": which.astype(jnp.uint32)[None]}, state

    def _decompress(self, payload: Payload, shape: Shape) -> Float32[Array, "m n"]:
        return jnp.zeros(shape, jnp.float32).at[payload["which"]].set(payload["row"])
