"""The sum of magnitudes, to be copied to `dropmuon_optax/norms/<name>.py`."""

import dataclasses
from typing import final

import jax.numpy as jnp
from jaxtyping import Array, Float

from dropmuon_optax.norms.base import Norm


@final
@dataclasses.dataclass(frozen=True, repr=False)
class SumEntry(Norm):
    """The sum of magnitudes Σ_ij |x_ij|.

    Dual: max_ij |g_ij|. Oracle: −t·sign(g_ij) at the largest entry, shared by ties.

    Examples:
      >>> SumEntry().lmo(jnp.array([[1.0, -3.0]]), radius=2.0)
      Array([[-0.,  2.]], dtype=float32)
    """

    # The matrix handed to these three has 1 for its largest entry: scales, dtypes,
    # zeros and non-finite entries are dealt with in the base.

    def _norm(self, x: Float[Array, "m n"]) -> Float[Array, ""]:
        return jnp.sum(jnp.abs(x))

    def _dual_norm(self, g: Float[Array, "m n"]) -> Float[Array, ""]:
        return jnp.max(jnp.abs(g))

    def _maximizer(self, g: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """The argmax {⟨g, x⟩ : ‖x‖ ≤ 1}; sign and radius come with `lmo`."""
        largest = jnp.abs(g) == jnp.max(jnp.abs(g))
        return jnp.where(largest, jnp.sign(g), 0.0) / jnp.sum(largest).astype(g.dtype)
