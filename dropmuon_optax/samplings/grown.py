"""Layers that are absent at first and enter for good."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float

from dropmuon_optax.samplings.base import Sampling, check_length
from dropmuon_optax.samplings.staged import as_stages


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Grown(Sampling):
    """From step kⱼ on, exactly the layers of the j-th set are present, and they move.

    A layer outside the set is absent: neither run nor differentiated (see
    `present_layers`), its residual branch being the identity. So a network grows from a
    few of its layers to all of them, at the cost of those it has. It is ours, not the
    Drop-Muon paper's, whose layers outside Sᵏ are run.

    Attributes:
      stages: pairs (kⱼ, set) with 0 = k₀ < k₁ < …, a set being b bools, counted from
        the input, of which one at least is True.

    Raises:
      ValueError: if `stages` are none such; when used, if a set is one of another
        number of layers.

    Examples:
      An embedding, four blocks of which two enter at step 400, and a head:

      >>> first = (True, True, True, False, False, True)
      >>> sampling = Grown(((0, first), (400, (True,) * 6)))
      >>> sampling.marginals(6, 399), sampling.marginals(6, 400)
      (array([1., 1., 1., 0., 0., 1.]), array([1., 1., 1., 1., 1., 1.]))
    """

    absent: ClassVar[bool] = True

    stages: Sequence[tuple[int, Any]]

    def __post_init__(self) -> None:
        stages = as_stages(self.stages, "b bools")
        for _, moves in stages:
            bools = all(isinstance(entry, bool | np.bool_) for entry in moves)
            if not bools or not any(moves):
                raise ValueError(
                    "a set of `stages` must be b bools of which one is True, "
                    f"got {moves!r}"
                )
        plain = tuple((int(first), tuple(map(bool, moves))) for first, moves in stages)
        object.__setattr__(self, "stages", plain)

    def check(self, num_layers: int) -> None:
        """Raises a ValueError if a set is one of another number of layers."""
        super().check(num_layers)
        for _, moves in self.stages:
            check_length(self, moves, num_layers)

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """A row for each stage."""
        return np.array([moves for _, moves in self.stages], np.float64)

    def row(self, num_layers: int, count: Any) -> Any:
        """The stage in force."""
        later = [(count - (first - 1)).clip(0, 1) for first, _ in self.stages[1:]]
        return sum(later, start=0 * count)

    def remaining(self, num_layers: int, count: int) -> Float[np.ndarray, "rows b"]:
        """The rows of the stage in force and of the later ones."""
        return self.table(num_layers)[self.row(num_layers, np.asarray(count)) :]
