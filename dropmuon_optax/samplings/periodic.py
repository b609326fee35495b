"""All layers at every P-th step."""

import dataclasses
from typing import Any, final

import numpy as np
from jaxtyping import Float

from dropmuon_optax import checks
from dropmuon_optax.samplings.base import Sampling


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Periodic(Sampling):
    """S is all layers at steps 0, P, 2P, …, and empty in between.

    For `drop_muon(…, outside=…)`, whose layers move at every step, in another norm when
    they are outside S.

    Attributes:
      period: P ≥ 1.

    Raises:
      ValueError: if `period` is no positive whole number.

    Examples:
      >>> sampling = Periodic(2)
      >>> sampling.marginals(3, 4), sampling.marginals(3, 5)
      (array([1., 1., 1.]), array([0., 0., 0.]))

    References:
      LionMuon, arXiv:2605.19811 (its period P; 2 is theirs).
    """

    period: int = 2

    def __post_init__(self) -> None:
        checks.positive_int("period", self.period)

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """A row of ones, and one of zeros if there are steps in between."""
        return np.outer([1.0, 0.0][: self.period], np.ones(num_layers))

    def row(self, num_layers: int, count: Any) -> Any:
        """The first one at multiples of the period."""
        return (count % self.period).clip(0, 1)
