"""The column norm: every output unit's weights are one vector."""

import dataclasses
from typing import ClassVar, final

import jax.numpy as jnp
from jaxtyping import Array, Float

from dropmuon_optax.linalg import l2_direction, l2_norm
from dropmuon_optax.norms.base import Norm


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Column(Norm):
    """The largest Euclidean norm of a column: max_j ‖x_·j‖₂.

    A column of a matrix (fan_in, fan_out) holds the weights into one output unit.
    Dual: Σ_j ‖g_·j‖₂. Oracle: −t·g_·j/‖g_·j‖₂, each column normalized by itself.

    Examples:
      >>> Column().lmo(jnp.array([[3.0, 0.0], [4.0, -2.0]]), radius=5.0)
      Array([[-3., -0.],
             [-4.,  5.]], dtype=float32)
    """

    separable: ClassVar[tuple[int, ...]] = (1,)

    def _norm(self, x: Float[Array, "m n"]) -> Float[Array, ""]:
        return jnp.max(l2_norm(x, axis=0))

    def _dual_norm(self, g: Float[Array, "m n"]) -> Float[Array, ""]:
        return jnp.sum(l2_norm(g, axis=0))

    def _maximizer(self, g: Float[Array, "m n"]) -> Float[Array, "m n"]:
        return l2_direction(g, axis=0)
