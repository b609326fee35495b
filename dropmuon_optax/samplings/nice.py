"""A fixed number of layers, chosen uniformly."""

import dataclasses
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float

from dropmuon_optax import checks
from dropmuon_optax.samplings.base import Sampling


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Nice(Sampling):
    """τ-nice sampling: all sets of exactly τ layers are equally likely, so Pᵢ = τ/b.

    Each layer draws a 32-bit word and the τ smallest move; equal words go by position,
    which changes probabilities by less than b²·2⁻³².

    Attributes:
      tau: τ, the number of layers that move.

    Raises:
      ValueError: if `tau` is no positive whole number; when used, if it exceeds b.

    Examples:
      >>> Nice(2).marginals(4, count=0)
      array([0.5, 0.5, 0.5, 0.5])
    """

    nested: ClassVar[bool] = False

    tau: int

    def __post_init__(self) -> None:
        checks.positive_int("tau", self.tau)

    def check(self, num_layers: int) -> None:
        """Raises a ValueError if τ exceeds `num_layers`."""
        super().check(num_layers)
        if self.tau > num_layers:
            raise ValueError(
                f"`tau` must be at most the {num_layers} layers there are, got {self!r}"
            )

    def can_be_empty(self, num_layers: int) -> bool:
        """Whether there are steps at which no layer may move: never."""
        self.check(num_layers)
        return False

    def decide(self, num_layers: int, count: Any, words: Any) -> Any:
        """The τ layers of the smallest words; see `Sampling.decide`."""
        xp = words.__array_namespace__()
        order = xp.argsort(words, axis=-1, stable=True)
        return xp.argsort(order, axis=-1, stable=True) < self.tau

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """One row of τ/b."""
        return np.full((1, num_layers), self.tau / num_layers)
