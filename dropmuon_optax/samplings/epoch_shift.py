"""Random cutoffs whose emphasis shifts with training, from shallow to deep ones.

Early on cutoffs near the input are likelier, and most of the network moves; towards the
end cutoffs near the output are, and only the last layers do. The Drop-Muon paper
reports such a schedule without a formula known to us: those below are not the paper's.
"""

import abc
import dataclasses
import math
from typing import Any, final

import numpy as np
from jaxtyping import Float

from dropmuon_optax import checks
from dropmuon_optax.samplings.base import Sampling
from dropmuon_optax.samplings.progressive import inclusion

NUM_STAGES = 1024  # rows of a table of thresholds: 4 KiB for each layer


class _Shift(Sampling, abc.ABC):
    """S = {s, …, b − 1} with P(s = i) = wᵢ/Σw, where w depends on the progress q."""

    @property
    @abc.abstractmethod
    def _num_steps(self) -> int:
        """The number of steps after which q is 1."""

    @abc.abstractmethod
    def _weights(
        self, i: Float[np.ndarray, " b"], q: Float[np.ndarray, "rows 1"]
    ) -> Float[np.ndarray, "rows b"]:
        """The weights wᵢ of cutoffs i = 0, …, b − 1 at progress q."""

    @property
    def _steps_per_stage(self) -> int:
        return -(-self._num_steps // NUM_STAGES)

    def row(self, num_layers: int, count: Any) -> Any:
        return (count // self._steps_per_stage).clip(max=self._last_row)

    def remaining(self, num_layers: int, count: int) -> Float[np.ndarray, "rows b"]:
        return self.table(num_layers)[self.row(num_layers, np.asarray(count)) :]

    @property
    def _last_row(self) -> int:
        return -(-self._num_steps // self._steps_per_stage)

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        steps = np.arange(self._last_row + 1) * self._steps_per_stage
        q = np.minimum(steps / self._num_steps, 1.0)
        return inclusion(self._weights(np.arange(num_layers, dtype=float), q[:, None]))


@final
@dataclasses.dataclass(frozen=True, repr=False)
class EpochShift(_Shift):
    """Random cutoffs with weights wᵢ = exp(α[(1 − q)(b − 1 − i) + q·i]).

    The progress q = k/num_steps moves in at most 1024 equal stages and is 1 after
    `num_steps`. The formula is that of a third party's implementation of Drop-Muon
    (5-dollar-llm, `optimizers/muon.py` at 674d9c0), not known to be the paper's.

    Attributes:
      num_steps: the number of steps of the whole training.
      alpha: α; 0 is uniform, a negative one shifts from deep to shallow cutoffs.

    Raises:
      ValueError: if `num_steps` is no positive whole number or `alpha` is not finite.

    Examples:
      >>> sampling = EpochShift(num_steps=100)
      >>> for k in (0, 50, 100):
      ...     print(sampling.marginals(3, k).round(2))
      [0.51 0.81 1.  ]
      [0.33 0.67 1.  ]
      [0.19 0.49 1.  ]
    """

    num_steps: int
    alpha: float | int = 0.5

    def __post_init__(self) -> None:
        checks.positive_int("num_steps", self.num_steps)
        checks.in_range(
            "alpha", self.alpha, -math.inf, math.inf, open_low=True, open_high=True
        )

    @property
    def _num_steps(self) -> int:
        return self.num_steps

    def _weights(
        self, i: Float[np.ndarray, " b"], q: Float[np.ndarray, "rows 1"]
    ) -> Float[np.ndarray, "rows b"]:
        exponent = self.alpha * ((1 - q) * (len(i) - 1 - i) + q * i)
        return np.exp(exponent - exponent.max(axis=1, keepdims=True))


@final
@dataclasses.dataclass(frozen=True, repr=False)
class LinearShift(_Shift):
    """Random cutoffs with weights wᵢ = (1 − q)(b − i) + q(i + 1).

    Ours, not the paper's. Over the cutoffs the weights fall linearly from b to 1 at
    first and rise so in the end; the progress q is as in `EpochShift`.

    Attributes:
      num_steps: the number of steps of the whole training.

    Raises:
      ValueError: if `num_steps` is no positive whole number.

    Examples:
      >>> LinearShift(num_steps=100).marginals(3, 0)
      array([0.5       , 0.83333333, 1.        ])
    """

    num_steps: int

    def __post_init__(self) -> None:
        checks.positive_int("num_steps", self.num_steps)

    @property
    def _num_steps(self) -> int:
        return self.num_steps

    def _weights(
        self, i: Float[np.ndarray, " b"], q: Float[np.ndarray, "rows 1"]
    ) -> Float[np.ndarray, "rows b"]:
        return (1 - q) * (len(i) - i) + q * (i + 1)
