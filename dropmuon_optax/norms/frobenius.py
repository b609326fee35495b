"""The Frobenius norm, whose oracle is normalized gradient descent."""

import dataclasses
from typing import ClassVar, final

from jaxtyping import Array, Float

from dropmuon_optax.linalg import l2_direction, l2_norm
from dropmuon_optax.norms.base import Norm


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Frobenius(Norm):
    """The Frobenius norm: √Σ_ij x_ij², its own dual.

    Oracle: −t·g/‖g‖_F, normalized gradient descent.

    Examples:
      >>> import jax.numpy as jnp
      >>> Frobenius().lmo(jnp.array([[3.0, -4.0]]), radius=5.0)
      Array([[-3.,  4.]], dtype=float32)
    """

    symmetric: ClassVar[bool] = True

    def _norm(self, x: Float[Array, "m n"]) -> Float[Array, ""]:
        return l2_norm(x)

    def _dual_norm(self, g: Float[Array, "m n"]) -> Float[Array, ""]:
        return l2_norm(g)

    def _maximizer(self, g: Float[Array, "m n"]) -> Float[Array, "m n"]:
        return l2_direction(g)
