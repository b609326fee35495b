"""The norm of a layer, as a noun: its value, its dual, its oracle.

A norm sees one matrix (m, n) = (fan_in, fan_out), as Flax stores kernels; stacks come
by `jax.vmap`, and a vector is a matrix of one row. To add a norm, write the three
functions of a matrix whose largest entry is 1 (or of the zero matrix); scale, dtypes
and non-finite values are dealt with here, once, for all of them.
"""

import abc
import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from dropmuon_optax import checks, linalg
from dropmuon_optax.nouns import Noun


class Norm(Noun, abc.ABC):
    """A norm ‖·‖ on matrices, with its dual norm and its linear minimization oracle.

    Attributes:
      mixes: whether the oracle multiplies matrices, so that a sharded one has to be
        gathered first. The others need sums and maxima only, which shard as they are.
      symmetric: whether ‖xᵀ‖ = ‖x‖, so that lmo(gᵀ) = lmo(g)ᵀ.
      separable: the axes along which the oracle of a block is the block of the oracle:
        0 if blocks of rows may be moved apart from each other, 1 if columns may.
    """

    mixes: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    separable: ClassVar[tuple[int, ...]] = ()

    @abc.abstractmethod
    def _norm(self, x: Float[Array, "m n"]) -> Float[Array, ""]:
        """‖x‖ of a matrix with entries of at most 1."""

    @abc.abstractmethod
    def _dual_norm(self, g: Float[Array, "m n"]) -> Float[Array, ""]:
        """‖g‖⋆ of a matrix with entries of at most 1."""

    @abc.abstractmethod
    def _maximizer(self, g: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """The argmax {⟨g, x⟩ : ‖x‖ ≤ 1} of a matrix with entries of at most 1."""

    def largest_entry(self, shape: tuple[int, int]) -> float:
        """The largest entry that the oracle's matrix may have, at radius 1.

        Of the norms here; a norm of one's own says so where it is not 1.
        """
        del shape
        return 1.0

    def check_radius(
        self, radius: Any, shape: Any, dtype: Any, name: str = "`radius`"
    ) -> None:
        """Refuses a radius whose step a dtype can't hold.

        Args:
          radius: a number; traced ones and schedules pass.
          shape: of the matrices, (…, m, n).
          dtype: of the step.
          name: of the radius, for the message.

        Raises:
          ValueError: naming the radius, the dtype and its largest number.
        """
        if not checks.is_concrete(radius) or 0 in shape:
            return
        m, n = shape[-2:]
        largest = float(jnp.finfo(dtype).max)
        if radius * self.largest_entry((m, n)) > largest:
            raise ValueError(
                f"{name} must be one whose step {jnp.dtype(dtype)} can hold, up to "
                f"{largest:.4g}, got {radius!r}"
            )

    def norm(self, x: Float[Array, "m n"]) -> Float[Array, ""]:
        """The norm ‖x‖.

        Args:
          x: a matrix of shape (m, n).

        Returns:
          A scalar, in float32 or the dtype of `x` if that is wider.

        Raises:
          ValueError: if `x` is no matrix.
        """
        checks.is_matrix("x", x)
        if x.size == 0:
            return jnp.zeros((), linalg.wide_dtype(x))
        unit, scale = linalg.unit_scale(x)
        return scale * self._norm(unit)

    def dual_norm(self, g: Float[Array, "m n"]) -> Float[Array, ""]:
        """The dual norm ‖g‖⋆ = max {⟨g, x⟩ : ‖x‖ ≤ 1}.

        Args:
          g: a matrix of shape (m, n), a gradient say.

        Returns:
          A scalar, in float32 or the dtype of `g` if that is wider.

        Raises:
          ValueError: if `g` is no matrix.
        """
        checks.is_matrix("g", g)
        if g.size == 0:
            return jnp.zeros((), linalg.wide_dtype(g))
        unit, scale = linalg.unit_scale(g)
        return scale * self._dual_norm(unit)

    def lmo(
        self, g: Float[Array, "m n"], radius: ArrayLike = 1.0
    ) -> Float[Array, "m n"]:
        """The linear minimization oracle: argmin {⟨g, x⟩ : ‖x‖ ≤ radius}.

        The sign is inside, as in the papers: ⟨g, lmo(g, t)⟩ = −t‖g‖⋆. The scale of g
        has no effect; where many x are minimal, the one without arbitrary parts is
        returned, hence zero for zero.

        Args:
          g: a matrix of shape (m, n), in any unit.
          radius: the radius t of the ball, in units of ‖·‖, at least 0.

        Returns:
          A matrix of shape (m, n) in the dtype of `g`. If any entry of `g` is not
          finite, every entry is NaN.

        Raises:
          ValueError: if `g` is no matrix, or `radius` is negative or too large for
            the dtype.
        """
        checks.is_matrix("g", g)
        checks.in_range("radius", radius, 0.0, math.inf, open_high=True)
        self.check_radius(radius, g.shape, g.dtype)
        if g.size == 0:
            return g
        unit, scale = linalg.unit_scale(g)
        step = -jnp.asarray(radius, unit.dtype) * self._maximizer(unit)
        return linalg.nan_unless_finite(step, scale).astype(g.dtype)

    def sharp(self, g: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """The sharp operator: argmax {⟨g, x⟩ − ½‖x‖²} = −‖g‖⋆·lmo(g).

        Args:
          g: a matrix of shape (m, n).

        Returns:
          A matrix of shape (m, n) in the dtype of `g`, of norm ‖g‖⋆.

        Raises:
          ValueError: if `g` is no matrix.
        """
        checks.is_matrix("g", g)
        wide = g.astype(linalg.wide_dtype(g))
        return (-self.dual_norm(wide) * self.lmo(wide)).astype(g.dtype)
