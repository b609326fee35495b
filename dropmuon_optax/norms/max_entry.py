"""The largest entry, whose oracle is sign descent."""

import dataclasses
from typing import ClassVar, final

import jax.numpy as jnp
from jaxtyping import Array, Float

from dropmuon_optax.norms.base import Norm


@final
@dataclasses.dataclass(frozen=True, repr=False)
class MaxEntry(Norm):
    """The largest magnitude of an entry: max_ij |x_ij|.

    Dual: Σ_ij |g_ij|. Oracle: −t·sign(g), sign descent.

    Examples:
      >>> MaxEntry().lmo(jnp.array([[1e-9, 0.0, -7.0]]), radius=0.5)
      Array([[-0.5, -0. ,  0.5]], dtype=float32)
    """

    symmetric: ClassVar[bool] = True
    separable: ClassVar[tuple[int, ...]] = (0, 1)

    def _norm(self, x: Float[Array, "m n"]) -> Float[Array, ""]:
        return jnp.max(jnp.abs(x))

    def _dual_norm(self, g: Float[Array, "m n"]) -> Float[Array, ""]:
        return jnp.sum(jnp.abs(g))

    def _maximizer(self, g: Float[Array, "m n"]) -> Float[Array, "m n"]:
        return jnp.sign(g)
