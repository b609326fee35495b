"""The root mean square, for vectors such as biases and scales."""

import dataclasses
import math
from typing import ClassVar, final

from jaxtyping import Array, Float

from dropmuon_optax.linalg import l2_direction, l2_norm
from dropmuon_optax.norms.base import Norm


@final
@dataclasses.dataclass(frozen=True, repr=False)
class RMS(Norm):
    """The root mean square of the entries: √(Σ_ij x_ij²/d) with d = mn.

    Dual: √d·√Σ_ij g_ij². Oracle: −t·√d·g/‖g‖₂. Under this norm a step of length t moves
    every entry by t on average, whatever the length of the vector.

    Examples:
      >>> import jax.numpy as jnp
      >>> RMS().lmo(jnp.array([[3.0, -4.0, 0.0, 0.0]]), radius=5.0)
      Array([[-6.,  8., -0., -0.]], dtype=float32)

    References:
      Pethick et al., Scion, arXiv:2502.07529 (the bias norm).
    """

    symmetric: ClassVar[bool] = True

    def largest_entry(self, shape: tuple[int, int]) -> float:
        """√d, of a vector with one entry."""
        return math.sqrt(math.prod(shape))

    def _norm(self, x: Float[Array, "m n"]) -> Float[Array, ""]:
        return l2_norm(x) / math.sqrt(x.size)

    def _dual_norm(self, g: Float[Array, "m n"]) -> Float[Array, ""]:
        return l2_norm(g) * math.sqrt(g.size)

    def _maximizer(self, g: Float[Array, "m n"]) -> Float[Array, "m n"]:
        return l2_direction(g) * math.sqrt(g.size)
