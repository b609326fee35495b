"""One sampling after the other."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float

from dropmuon_optax import checks
from dropmuon_optax.samplings.base import Sampling


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Staged(Sampling):
    """From step kⱼ on, S is drawn by the j-th sampling, until the next one's turn.

    Such as all layers first, then suffixes: what is near the input settles early. It
    is ours, not the Drop-Muon paper's.

    Attributes:
      stages: pairs (kⱼ, sampling) with 0 = k₀ < k₁ < …; samplings whose sets are nested
        (`Full`, `Progressive`, `EpochShift`, `RoundRobin`, …). They see the step count
        k itself, not k − kⱼ.

    Raises:
      ValueError: if `stages` are none such; when used, if a sampling is one of another
        number of layers.

    Examples:
      >>> from dropmuon_optax.samplings.full import Full
      >>> from dropmuon_optax.samplings.progressive import Progressive
      >>> sampling = Staged(((0, Full()), (300, Progressive((0.25, 0.0, 0.75)))))
      >>> sampling.marginals(3, 299), sampling.marginals(3, 300)
      (array([1., 1., 1.]), array([0.25, 0.25, 1.  ]))
    """

    stages: Sequence[tuple[int, Sampling]]

    def __post_init__(self) -> None:
        stages = as_stages(self.stages, "sampling")
        for _, sampling in stages:
            if not isinstance(sampling, Sampling) or not sampling.nested:
                raise ValueError(
                    "`stages` must hold samplings whose sets are nested, "
                    f"got {sampling!r}"
                )
            if sampling.absent:
                raise ValueError(
                    "`stages` must hold samplings that run all layers; `Grown` has "
                    f"stages of its own, got {sampling!r}"
                )
        object.__setattr__(self, "stages", stages)

    def check(self, num_layers: int) -> None:
        """Raises a ValueError if a stage is of another number of layers."""
        for _, sampling in self.stages:
            sampling.check(num_layers)

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """Those of the stages, one below the other."""
        return np.concatenate([s.table(num_layers) for _, s in self.stages])

    def row(self, num_layers: int, count: Any) -> Any:
        """The row of the stage in force."""
        row, offset = 0 * count, 0
        for first, sampling in self.stages:
            in_force = (count - (first - 1)).clip(0, 1)
            own = sampling.row(num_layers, count) + offset
            row = (1 - in_force) * row + in_force * own
            offset += len(sampling.table(num_layers))
        return row

    def remaining(self, num_layers: int, count: int) -> Float[np.ndarray, "rows b"]:
        """Those of the stage in force and of the later ones."""
        ends = [first for first, _ in self.stages[1:]]
        later = [sampling for _, sampling in self.stages[: len(ends)]]
        pairs = zip(later, ends, strict=True)
        left = [sampling for sampling, end in pairs if count < end]
        left.append(self.stages[-1][1])
        return np.concatenate([s.remaining(num_layers, count) for s in left])


def as_stages(stages: Any, what: str) -> tuple[tuple[int, Any], ...]:
    """`stages` as pairs (first step, what holds from there on), in order from step 0.

    Raises:
      ValueError: if they are none.
    """
    try:
        pairs = tuple((first, stage) for first, stage in stages)
    except (TypeError, ValueError):
        pairs = ()
    if not pairs or pairs[0][0] != 0:
        raise ValueError(
            f"`stages` must be pairs (first step, {what}), the first step of the first "
            f"one 0, got {stages!r}"
        )
    for (before, _), (first, _) in itertools.pairwise(pairs):
        checks.positive_int("first step of a stage", first)
        if first <= before:
            raise ValueError(f"`stages` must be in order, got {stages!r}")
    return pairs
