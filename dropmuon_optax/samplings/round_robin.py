"""One layer after the other."""

import dataclasses
from typing import Any, final

import numpy as np
from jaxtyping import Float

from dropmuon_optax.samplings.base import Sampling


@final
@dataclasses.dataclass(frozen=True, repr=False)
class RoundRobin(Sampling):
    """S = {k mod b}: cyclic block-coordinate descent, without chance.

    Examples:
      >>> RoundRobin().marginals(3, count=4)
      array([0., 1., 0.])
    """

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """A row for each layer."""
        return np.eye(num_layers)

    def row(self, num_layers: int, count: Any) -> Any:
        """The layer whose turn it is."""
        return count % num_layers
