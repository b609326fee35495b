"""Damping and dropout: what contracts in every norm, and saves nothing by itself."""

import dataclasses
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp

from dropmuon_optax import checks
from dropmuon_optax.compressors.base import Compressor
from dropmuon_optax.linalg import saturate


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Damping(Compressor):
    """Damping: C(x) = factor·x.

    The error is |1 − factor|·‖x‖ in every norm, so α = 1 − (1 − factor)². It is as
    large as the matrix: a device of the theory, for a server that must contract in a
    layer's own norm. What would overflow is the largest finite number, which is nearer.

    Payload: `values`, float32 of shape (m, n), holding factor·x.

    Attributes:
      factor: a number in (0, 2).

    Raises:
      ValueError: if `factor` is outside (0, 2).

    Examples:
      >>> Damping(0.5).alpha((8, 8))
      0.75
    """

    factor: float

    alpha_norm: ClassVar[str] = "every"
    is_dense: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_number("factor", self.factor, 2.0, open_high=True)

    def alpha(self, shape):
        """1 − (1 − factor)²."""
        del shape
        return 1 - (1 - self.factor) ** 2

    def coded_alpha(self, shape, inner):
        """By the triangle inequality: |1 − factor| + factor·√(1 − inner) at most."""
        del shape
        error = abs(1 - self.factor) + self.factor * (1 - inner) ** 0.5
        return 1 - error**2

    def _compress(self, x, state, key, arrives):
        del key, arrives
        return {"values": saturate(self.factor * x)}, state

    def _decompress(self, payload, shape):
        del shape
        return payload["values"]


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Dropout(Compressor):
    """Dropout: C(x) = x with the given probability, else 0.

    E‖C(x) − x‖² = (1 − probability)‖x‖² in every norm, so α = probability. The payload
    has one shape whichever way the draw goes, as compiled programs have it: the matrix
    or as many zeros. So nothing is saved, and `num_bits` counts all of it.

    Payload: `values`, float32 of shape (m, n).

    Attributes:
      probability: that of sending x, in (0, 1].

    Raises:
      ValueError: if `probability` is not in (0, 1].

    Examples:
      >>> Dropout(0.5).alpha((8, 8)), Dropout(0.5).num_bits((8, 8))
      (0.5, 2048)

    References:
      Gruntkowska et al., EF21-Muon, arXiv:2510.00643, on non-Euclidean compressors.
    """

    probability: float

    alpha_norm: ClassVar[str] = "every"
    is_dense: ClassVar[bool] = True
    random: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_number("probability", self.probability, 1.0)

    def alpha(self, shape):
        """The probability of sending x."""
        del shape
        return self.probability

    def _compress(self, x, state, key, arrives):
        del arrives
        sent = jax.random.bernoulli(key, self.probability)
        return {"values": jnp.where(sent, x, 0.0)}, state

    def _decompress(self, payload, shape):
        del shape
        return payload["values"]


def _check_number(name: str, value: Any, high: float, open_high: bool = False) -> None:
    """Refuses what is no Python number in (0, high], for α is computed from it."""
    if not checks.is_concrete(value):
        raise ValueError(f"`{name}` must be a Python number, got {value!r}")
    checks.in_range(name, value, 0.0, high, open_low=True, open_high=open_high)
