"""All layers now and then, to be copied to `dropmuon_optax/samplings/<name>.py`."""

import dataclasses
from typing import Any, final

import numpy as np
from jaxtyping import Float

from dropmuon_optax import checks
from dropmuon_optax.samplings.base import Sampling


@final
@dataclasses.dataclass(frozen=True, repr=False)
class NowAndThen(Sampling):
    """All layers at every `period`-th step, and the last one alone in between.

    Attributes:
      period: a positive number of steps.

    Raises:
      ValueError: if `period` is no positive whole number.

    Examples:
      >>> NowAndThen(3).marginals(2, count=3), NowAndThen(3).marginals(2, count=4)
      (array([1., 1.]), array([0., 1.]))
    """

    period: int

    def __post_init__(self) -> None:
        checks.positive_int("period", self.period)

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """Inclusion probabilities: a row of ones, and one of the last layer alone."""
        last = np.arange(num_layers) == num_layers - 1
        return np.stack([np.ones(num_layers), last.astype(float)])

    def row(self, num_layers: int, count: Any) -> Any:
        """Which of them holds at step k. It may be traced, so no `if` over it."""
        del num_layers
        return (count % self.period).clip(0, 1)
