"""A random cutoff: the layers from it to the output move."""

import dataclasses
from collections.abc import Sequence
from typing import final

import numpy as np
from jaxtyping import Float

from dropmuon_optax.samplings.base import (
    SUM_TOLERANCE,
    Sampling,
    as_probabilities,
    check_length,
)


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Progressive(Sampling):
    """Randomized progressive training: S = {s, …, b − 1}, where P(s = i) = pᵢ.

    So Pᵢ = p₀ + … + pᵢ, and the last layer always moves. Backpropagation stops at s.

    Attributes:
      probabilities: pᵢ of each cutoff i, counted from the input; None is uniform, 1/b.

    Raises:
      ValueError: if they are not in [0, 1] or their sum is not 1 (within 1e-6); when
        used, if there are not b of them.

    Examples:
      >>> Progressive().marginals(4, count=0)
      array([0.25, 0.5 , 0.75, 1.  ])
      >>> Progressive((0.5, 0.0, 0.5)).marginals(3, count=0)
      array([0.5, 0.5, 1. ])

    References:
      Drop-Muon, arXiv:2510.02239: cutoffs, and the uniform ones of its experiments.
      Szlendak, Gasanov, Richtárik, Understanding progressive training through the
      framework of randomized coordinate descent, arXiv:2306.03626.
    """

    probabilities: Sequence[float | int] | np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.probabilities is None:
            return
        values = as_probabilities("probabilities", self.probabilities)
        if abs(sum(values) - 1) > SUM_TOLERANCE:
            raise ValueError(
                f"`probabilities` must sum to 1 within {SUM_TOLERANCE}, got {values} "
                f"of sum {sum(values)}"
            )
        object.__setattr__(self, "probabilities", values)

    def check(self, num_layers: int) -> None:
        """Raises a ValueError if there are not `num_layers` probabilities."""
        super().check(num_layers)
        if self.probabilities is not None:
            check_length(self, tuple(self.probabilities), num_layers)

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """One row, from the cutoffs' probabilities."""
        weights = self.probabilities
        return inclusion(np.ones(num_layers) if weights is None else weights)[None]


def inclusion(weights: Sequence[float | int] | np.ndarray) -> np.ndarray:
    """Pᵢ = Σ_{s ≤ i} w_s / Σ_s w_s along the last axis, from weights of the cutoffs."""
    sums = np.cumsum(np.asarray(weights, np.float64), axis=-1)
    return sums / sums[..., -1:]
