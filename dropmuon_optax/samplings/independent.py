"""A coin for every layer."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float

from dropmuon_optax.samplings.base import Sampling, as_probabilities, check_length


@dataclasses.dataclass(frozen=True, repr=False)
class Coins(Sampling, abc.ABC):
    """Layer i is in Sᵏ with probability Pᵢ, independently of the others."""

    nested: ClassVar[bool] = False

    probabilities: Sequence[float | int] | np.ndarray

    def __post_init__(self) -> None:
        values = as_probabilities("probabilities", self.probabilities)
        object.__setattr__(self, "probabilities", values)

    def check(self, num_layers: int) -> None:
        """Raises a ValueError if there are not `num_layers` probabilities."""
        super().check(num_layers)
        check_length(self, tuple(self.probabilities), num_layers)

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """One row, as given."""
        return np.array(self.probabilities, np.float64)[None]


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Independent(Coins):
    """Layer i moves with probability Pᵢ, independently of the others.

    Unless some Pᵢ is 1, the set can be empty (`can_be_empty`): nothing moves then and
    the counters advance. There is no gradient to compute for such a set, so give
    `update` zeros in place of what `value_and_grad` would return.

    Warning: a train step with a static `active` is compiled for each set that is drawn,
    and there are up to 2ᵇ: nearly every step is another program (see `Nice` for what
    that takes). `OneOf` draws from a few sets of your own.

    Attributes:
      probabilities: Pᵢ of each layer, counted from the input.

    Raises:
      ValueError: if they are not in [0, 1]; when used, if there are not b of them.

    Examples:
      >>> Independent((0.5, 1.0)).can_be_empty(2)
      False
      >>> Independent((0.5, 0.9)).can_be_empty(2)
      True
    """
