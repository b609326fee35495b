"""A coin for every layer, whether it is there at all."""

import dataclasses
from typing import ClassVar, final

from dropmuon_optax.samplings.independent import Coins


@final
@dataclasses.dataclass(frozen=True, repr=False)
class StochasticDepth(Coins):
    """Layer i is present with probability Pᵢ, independently of the others, and moves.

    As `Independent`, but a layer outside the set is absent: neither run nor
    differentiated (see `present_layers`), its residual branch being the identity. The
    branches are not rescaled: an evaluation with all layers sees, on average, Σᵢ 1 − Pᵢ
    branches more than a step did (the authors multiply branch i by Pᵢ there).

    One program is compiled for each distinct set, of which there are up to 2ᵇ.

    Attributes:
      probabilities: Pᵢ of each layer, counted from the input; 1 for layers without a
        residual path (embedding, head).

    Raises:
      ValueError: if they are not in [0, 1]; when used, if there are not b of them.

    Examples:
      >>> StochasticDepth((1.0, 0.9, 0.8, 1.0)).marginals(4, count=7)
      array([1. , 0.9, 0.8, 1. ])

    References:
      Huang, Sun, Liu, Sedra, Weinberger, Deep networks with stochastic depth,
      arXiv:1603.09382, Section 3.
    """

    absent: ClassVar[bool] = True
