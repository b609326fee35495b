"""A fixed number of layers, chosen uniformly from all such sets, or from a few."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float

from dropmuon_optax import checks
from dropmuon_optax.samplings.base import (
    SUM_TOLERANCE,
    Sampling,
    as_probabilities,
)

Set = tuple[bool, ...]


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Nice(Sampling):
    """τ-nice sampling: all sets of exactly τ layers are equally likely, so Pᵢ = τ/b.

    Each layer draws a 32-bit word and the τ smallest move; equal words go by position,
    which changes probabilities by less than b²·2⁻³².

    Warning: a train step with a static `active` is compiled for each set that is drawn,
    and there are b!/(τ!(b − τ)!): of 12 layers `Nice(4)` drew 90 in 100 steps, which
    took 102 s (cutoffs 12 programs and 8 s), and 423 in 1,000. For the same Pᵢ by b
    programs take `OneOf(cyclic_sets(b, tau))`.

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


@final
@dataclasses.dataclass(frozen=True, repr=False)
class OneOf(Sampling):
    """S is one of the given sets, Sⱼ with probability pⱼ, so Pᵢ = Σ_{j: i ∈ Sⱼ} pⱼ.

    A train step with a static `active` is compiled once for each set: this bounds how
    often.

    Attributes:
      sets: Sⱼ, each a tuple of b bools, layers counted from the input.
      probabilities: pⱼ of each set; None is uniform.

    Raises:
      ValueError: if there are no sets, or they are not of one number of layers; if the
        probabilities are not one for each set, in [0, 1] and of sum 1 (within 1e-6);
        when used, if the sets are not of b layers.

    Examples:
      >>> halves = OneOf(((True, True, False, False), (False, False, True, True)))
      >>> halves.marginals(4, count=0)
      array([0.5, 0.5, 0.5, 0.5])
      >>> OneOf(cyclic_sets(num_layers=4, tau=3)).marginals(4, count=0)
      array([0.75, 0.75, 0.75, 0.75])
    """

    nested: ClassVar[bool] = False

    sets: Sequence[Sequence[Any]]
    probabilities: Sequence[float | int] | np.ndarray | None = None

    def __post_init__(self) -> None:
        found = tuple(tuple(one) for one in self.sets)
        flags = all(isinstance(flag, bool | np.bool_) for one in found for flag in one)
        if not found or not found[0] or len({len(s) for s in found}) > 1 or not flags:
            raise ValueError(
                "`sets` must be tuples of bools, all of one length, such as "
                f"((True, False), (False, True)), got {self.sets!r}"
            )
        sets = tuple(tuple(map(bool, one)) for one in found)
        object.__setattr__(self, "sets", sets)
        if self.probabilities is None:
            return
        values = as_probabilities("probabilities", self.probabilities)
        if len(values) != len(sets) or abs(sum(values) - 1) > SUM_TOLERANCE:
            raise ValueError(
                f"`probabilities` must be one for each of the {len(sets)} sets, of sum "
                f"1 within {SUM_TOLERANCE}, got {values} of sum {sum(values)}"
            )
        object.__setattr__(self, "probabilities", values)

    def check(self, num_layers: int) -> None:
        """Raises a ValueError if the sets are not of `num_layers` layers."""
        super().check(num_layers)
        if len(self.sets[0]) != num_layers:
            raise ValueError(
                f"`sets` must be of the {num_layers} layers there are, got {self!r}"
            )

    def can_be_empty(self, num_layers: int) -> bool:
        """Whether a set without layers can be drawn."""
        self.check(num_layers)
        return not self._drawn()[1].any(axis=1).all()

    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """One row, Σⱼ pⱼ·1[i ∈ Sⱼ]."""
        weights, sets = self._drawn()
        # Summed in one order, so that a layer in all sets has exactly 1.
        return ((weights * sets.T).sum(axis=1) / weights.sum())[None]

    def num_words(self, num_layers: int) -> int:
        """One random word chooses the set."""
        return 1

    def decide(self, num_layers: int, count: Any, words: Any) -> Any:
        """The set in whose share of [0, 2³²) the word lies; see `Sampling.decide`."""
        xp = words.__array_namespace__()
        weights, sets = self._drawn()
        # Where each share but the last ends, in words.
        ends = np.round(np.cumsum(weights)[:-1] / weights.sum() * 2**32)
        ends = np.minimum(ends, 2**32 - 1).astype(np.uint32)
        chosen = (words >= xp.asarray(ends)).sum(axis=-1)
        return xp.asarray(sets)[chosen]

    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights and sets with any weight, as arrays (sets,) and (sets, b)."""
        weights = self.probabilities
        weights = np.ones(len(self.sets)) if weights is None else np.array(weights)
        return weights[weights > 0], np.array(self.sets)[weights > 0]


def cyclic_sets(num_layers: int, tau: int) -> tuple[Set, ...]:
    """The b sets of τ layers in a row, the first after the last: {s, …, s + τ − 1}.

    `OneOf` of them moves each layer in τ/b of the steps, as `Nice(tau)` does, by b
    programs in place of as many as there are sets of τ layers. Neighbors move together.

    Args:
      num_layers: the number of layers b.
      tau: τ, how many move; at most b.

    Returns:
      A tuple of sets, each of b bools.

    Raises:
      ValueError: if `tau` is not in {1, …, b}.

    Examples:
      >>> cyclic_sets(3, 2)
      ((True, True, False), (False, True, True), (True, False, True))
    """
    checks.positive_int("num_layers", num_layers)
    checks.positive_int("tau", tau)
    if tau > num_layers:
        raise ValueError(
            f"`tau` must be at most the {num_layers} layers there are, got {tau}"
        )
    if tau == num_layers:
        return ((True,) * num_layers,)
    return tuple(
        tuple((i - start) % num_layers < tau for i in range(num_layers))
        for start in range(num_layers)
    )
