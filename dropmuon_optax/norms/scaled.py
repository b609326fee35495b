"""A multiple of another norm, by a number or by a power of the layer's sides."""

import dataclasses
import math
from collections.abc import Callable
from typing import final

from jaxtyping import Array, Float

from dropmuon_optax import checks
from dropmuon_optax.norms.base import Norm
from dropmuon_optax.nouns import Noun

_OPEN = {"open_low": True, "open_high": True}


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Scaled(Norm):
    """A multiple of a norm: factor·‖x‖.

    Dual: ‖g‖⋆/factor. Oracle: lmo(g)/factor, so a larger factor is a smaller ball.

    Attributes:
      inner: the norm ‖·‖.
      factor: a positive number, or a function of (fan_in, fan_out) that returns one,
        such as `Monomial(fan_in=1.0)`. Give it a function that can be compared and
        printed, a frozen dataclass say, rather than a lambda.

    Raises:
      ValueError: if `factor` is not positive.

    Examples:
      >>> import jax.numpy as jnp
      >>> from dropmuon_optax.norms.max_entry import MaxEntry
      >>> Scaled(MaxEntry(), 4.0).lmo(jnp.array([[1.0, -1.0]]))
      Array([[-0.25,  0.25]], dtype=float32)
    """

    inner: Norm
    factor: float | Callable[[int, int], float]
    _name: str = dataclasses.field(init=False, repr=False, compare=False, default="")

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Norm):
            raise ValueError(f"`inner` must be a norm, got {self.inner!r}")
        if not callable(self.factor):
            checks.in_range("factor", self.factor, 0.0, math.inf, **_OPEN)

    def named(self, name: str) -> "Scaled":
        """The same norm, printed as the call that made it.

        Examples:
          >>> from dropmuon_optax.norms.rms import RMS
          >>> Scaled(RMS(), 2.0).named("double()")
          double()
        """
        same = dataclasses.replace(self)
        object.__setattr__(same, "_name", name)
        return same

    def __repr__(self) -> str:
        return self._name or super().__repr__()

    @property
    def mixes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the inner oracle multiplies matrices."""
        return self.inner.mixes

    def largest_entry(self, shape: tuple[int, int]) -> float:
        """That of the inner norm, divided by the factor."""
        factor = self.factor(*shape) if callable(self.factor) else self.factor
        return self.inner.largest_entry(shape) / factor

    def _factor(self, x: Float[Array, "m n"]) -> float:
        return self.factor(*x.shape) if callable(self.factor) else self.factor

    def _norm(self, x: Float[Array, "m n"]) -> Float[Array, ""]:
        return self._factor(x) * self.inner._norm(x)

    def _dual_norm(self, g: Float[Array, "m n"]) -> Float[Array, ""]:
        return self.inner._dual_norm(g) / self._factor(g)

    def _maximizer(self, g: Float[Array, "m n"]) -> Float[Array, "m n"]:
        return self.inner._maximizer(g) / self._factor(g)


def unscaled(norm: Norm, shape: tuple[int, int]) -> tuple[Norm, float]:
    """The norm and the factor c that make up c‖·‖ on matrices of this shape.

    Examples:
      >>> from dropmuon_optax.norms.max_entry import MaxEntry
      >>> unscaled(Scaled(Scaled(MaxEntry(), 2.0), Monomial(fan_in=1.0)), (4, 3))
      (MaxEntry(), 8.0)
    """
    factor = 1.0
    while isinstance(norm, Scaled):
        factor *= norm.factor(*shape) if callable(norm.factor) else norm.factor
        norm = norm.inner
    return norm, factor


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Monomial(Noun):
    """min(at_most, constant · fan_inᵃ · fan_outᵇ) of a matrix (fan_in, fan_out).

    Attributes:
      fan_in: the power a of the number of rows.
      fan_out: the power b of the number of columns.
      constant: a positive constant.
      at_most: an upper bound.

    Raises:
      ValueError: if a power is no number, or `constant` or `at_most` not positive.

    Examples:
      >>> Monomial(fan_in=0.5, fan_out=-0.5)(16, 4)
      2.0
    """

    fan_in: float = 0.0
    fan_out: float = 0.0
    constant: float = 1.0
    at_most: float = math.inf

    def __post_init__(self) -> None:
        for name in ("fan_in", "fan_out"):
            checks.in_range(name, getattr(self, name))
        checks.in_range("constant", self.constant, 0.0, math.inf, **_OPEN)
        checks.in_range("at_most", self.at_most, 0.0, math.inf, open_low=True)

    def __call__(self, m: int, n: int) -> float:
        """The value for a matrix of m rows and n columns."""
        return min(self.at_most, self.constant * m**self.fan_in * n**self.fan_out)


@final
@dataclasses.dataclass(frozen=True, repr=False)
class LongSide(Noun):
    """constant · max(fan_in, fan_out)ᵃ of a matrix (fan_in, fan_out).

    Attributes:
      power: the power a.
      constant: a positive constant.

    Raises:
      ValueError: if `power` is no number, or `constant` not positive.

    Examples:
      >>> LongSide(0.5)(16, 4)
      4.0
    """

    power: float
    constant: float = 1.0

    def __post_init__(self) -> None:
        checks.in_range("power", self.power)
        checks.in_range("constant", self.constant, 0.0, math.inf, **_OPEN)

    def __call__(self, m: int, n: int) -> float:
        """The value for a matrix of m rows and n columns."""
        return self.constant * max(m, n) ** self.power
