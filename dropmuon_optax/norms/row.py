"""The row norm: every input unit's weights are one vector."""

import dataclasses
from typing import ClassVar, final

import jax.numpy as jnp
from jaxtyping import Array, Float

from dropmuon_optax.linalg import l2_direction, l2_norm
from dropmuon_optax.norms.base import Norm


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Row(Norm):
    """The largest Euclidean norm of a row: max_i ‖x_i·‖₂.

    A row of a matrix (fan_in, fan_out) holds the weights out of one input unit, such
    as one token's embedding. Dual: Σ_i ‖g_i·‖₂. Oracle: −t·g_i·/‖g_i·‖₂, each row
    normalized by itself.

    Examples:
      >>> Row().lmo(jnp.array([[3.0, 4.0], [0.0, -2.0]]), radius=5.0)
      Array([[-3., -4.],
             [-0.,  5.]], dtype=float32)
    """

    separable: ClassVar[tuple[int, ...]] = (0,)

    def _norm(self, x: Float[Array, "m n"]) -> Float[Array, ""]:
        return jnp.max(l2_norm(x, axis=1))

    def _dual_norm(self, g: Float[Array, "m n"]) -> Float[Array, ""]:
        return jnp.sum(l2_norm(g, axis=1))

    def _maximizer(self, g: Float[Array, "m n"]) -> Float[Array, "m n"]:
        return l2_direction(g, axis=1)
