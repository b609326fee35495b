"""Every layer moves at every step."""

import dataclasses
from typing import final

import numpy as np
from jaxtyping import Float

from dropmuon_optax.samplings.base import Sampling


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Full(Sampling):
    """S = {0, …, b − 1}: nothing is dropped.

    Examples:
      >>> Full().marginals(3, count=0)
      array([1., 1., 1.])
    """

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """Ones."""
        return np.ones((1, num_layers))
