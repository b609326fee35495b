"""What a step costs, and which cutoffs make a run cheapest: our derivation.

The Drop-Muon paper has a section on cost and optimal probabilities whose statements are
not known to us; what stands here is derived from its algorithm and is not the paper's.
Time is in seconds, but any unit of cost does (FLOPs, joules), and layers are counted
from 0 at the input. With step sizes 1/Lᵢ, layer-wise smoothness Lᵢ gives for K steps

    Σₖ Σᵢ Pᵢ/(2Lᵢ)·E‖∇ᵢf(Xᵏ)‖⋆² ≤ f(X⁰) − inf f,

where Pᵢ = p₀ + … + pᵢ is the probability that layer i moves; and a step costs in
expectation fixed + Σᵢ cᵢPᵢ. Both criteria of `optimal_probabilities` follow from these.
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import jax
import jax.numpy as jnp
import numpy as np

from dropmuon_optax import checks
from dropmuon_optax.nouns import Noun


@final
@dataclasses.dataclass(frozen=True, repr=False)
class StepCost(Noun):
    """The cost of a step: fixed + Σ_{i ∈ S} cᵢ.

    Attributes:
      fixed: the cost of what every step does: the forward pass, and what else there is.
      per_layer: cᵢ, the cost of moving layer i: its backward pass, oracle and update.

    Raises:
      ValueError: if a cost is not finite. (Measured ones may be negative: noise.)

    Examples:
      >>> cost = StepCost(fixed=2.0, per_layer=(3.0, 1.0))
      >>> cost.of((False, True))
      3.0
      >>> cost.expected((0.5, 1.0))
      4.5
    """

    fixed: float | int
    per_layer: Sequence[float | int]

    def __post_init__(self) -> None:
        costs = [("fixed", self.fixed), *(("per_layer", c) for c in self.per_layer)]
        for name, cost in costs:
            checks.in_range(
                name, cost, -math.inf, math.inf, open_low=True, open_high=True
            )
        if len(costs) == 1:
            raise ValueError("`per_layer` must hold at least one cost, got none")
        values = tuple(float(cost) for cost in self.per_layer)
        object.__setattr__(self, "per_layer", values)

    def of(self, active: Sequence[bool]) -> float:
        """The cost of a step at which the layers of `active` move."""
        return self.expected([float(moves) for moves in active])

    def expected(self, marginals: Any) -> float:
        """The expected cost of a step.

        Args:
          marginals: Pᵢ of each layer, as `Sampling.marginals` returns them.

        Raises:
          ValueError: if there is not one for each layer.
        """
        if len(marginals) != len(self.per_layer):
            raise ValueError(
                f"`marginals` must have one number for each of {len(self.per_layer)} "
                f"layers, got {len(marginals)}"
            )
        shares = zip(self.per_layer, marginals, strict=True)
        return float(self.fixed + sum(cost * p for cost, p in shares))


def measure_costs(
    train_step: Callable[..., Any], *args: Any, num_layers: int, repeats: int = 10
) -> StepCost:
    r"""Times a train step at each cutoff, on this machine.

    Each cutoff's program is compiled and run once before the clock starts. Then all
    take turns, `repeats` times, so that a slow moment of the machine meets them alike;
    the medians t₀, …, t_{b−1} count. Since the last layer always moves, its cost can't
    be told from what every step does: cᵢ = tᵢ − tᵢ₊₁, the last c is 0, fixed = t_{b−1}.

    Args:
      train_step: a jitted function (\*args, active=…) whose static argument `active`
        says which layers move. It gets copies, so it may donate its arguments.
      *args: the parameters, the optimizer's state, a batch.
      num_layers: the number of layers b.
      repeats: how often to time each cutoff.

    Returns:
      The costs, in seconds.

    Raises:
      ValueError: if `num_layers` or `repeats` is no positive whole number.

    Examples:
      >>> @jax.jit
      ... def train_step(x, active=None):
      ...     return x @ x
      >>> cost = measure_costs(train_step, jnp.eye(8), num_layers=2, repeats=3)
      >>> len(cost.per_layer), cost.fixed > 0
      (2, True)
    """
    checks.positive_int("num_layers", num_layers)
    checks.positive_int("repeats", repeats)
    cutoffs = [tuple(i >= s for i in range(num_layers)) for s in range(num_layers)]
    times: list[list[float]] = [[] for _ in cutoffs]
    for turn in range(repeats + 1):
        for active, found in zip(cutoffs, times, strict=True):
            copies = jax.block_until_ready(jax.tree.map(_copy, args))
            start = time.perf_counter()
            jax.block_until_ready(train_step(*copies, active=active))
            if turn > 0:  # the first one compiles
                found.append(time.perf_counter() - start)
    medians = [statistics.median(found) for found in times]
    per_layer = [a - b for a, b in itertools.pairwise(medians)]
    return StepCost(medians[-1], (*per_layer, 0.0))


def _copy(x: Any) -> Any:
    return jnp.copy(x) if isinstance(x, jax.Array) else x


def optimal_probabilities(
    costs: StepCost,
    smoothness: Sequence[float | int],
    criterion: Literal["unweighted", "weighted"] = "unweighted",
) -> tuple[float, ...]:
    """Probabilities of cutoffs that reach small gradients at the least expected cost.

    Ours, not the paper's (see the top of this page):

    - "unweighted": E Σᵢ‖∇ᵢf‖⋆² ≤ ε after K = (2Δ/ε)·maxᵢ Lᵢ/Pᵢ steps. The cost
      K·(fixed + Σ cᵢPᵢ) is least at Pᵢ = max_{j ≤ i} Lⱼ / max_j Lⱼ, whatever the costs.
      All layers move at every step if and only if the first one has the largest L.
    - "weighted": Σᵢ wᵢ·E‖∇ᵢf‖⋆² ≤ ε with weights wᵢ ∝ Pᵢ/Lᵢ, so that layers count as
      they are trained. The cost per unit of progress, (fixed + Σ cᵢPᵢ)/Σ Pᵢ/Lᵢ, is
      least at one fixed cutoff, and the layers before it are never trained.

    Args:
      costs: the cost of a step, such as `measure_costs` returns.
      smoothness: Lᵢ > 0 of each layer, counted from the input, in units of ‖∇ᵢf‖⋆ per
        ‖Xᵢ‖₍ᵢ₎.
      criterion: what is to be small.

    Returns:
      pᵢ of each cutoff, for `samplings.Progressive`.

    Raises:
      ValueError: if `smoothness` isn't one positive number for each layer or there is
        no such criterion.

    Examples:
      >>> costs = StepCost(1.0, (1.0, 1.0, 1.0))
      >>> optimal_probabilities(costs, (1.0, 4.0, 2.0))
      (0.25, 0.75, 0.0)
      >>> optimal_probabilities(costs, (9.0, 1.0, 1.0), "weighted")
      (0.0, 1.0, 0.0)
    """
    if len(smoothness) != len(costs.per_layer):
        raise ValueError(
            f"`smoothness` must have one number for each of {len(costs.per_layer)} "
            f"layers, got {len(smoothness)}"
        )
    for value in smoothness:
        checks.in_range(
            "smoothness", value, 0.0, math.inf, open_low=True, open_high=True
        )
    constants = np.array(smoothness, np.float64)
    if criterion == "unweighted":
        marginals = np.maximum.accumulate(constants) / constants.max()
    elif criterion == "weighted":
        progress = np.cumsum(1 / constants[::-1])[::-1]  # of each cutoff
        cost = costs.fixed + np.cumsum(costs.per_layer[::-1])[::-1]
        marginals = np.arange(len(cost)) >= np.argmax(progress / cost)
    else:
        raise ValueError(
            f'`criterion` must be "unweighted" or "weighted", got {criterion!r}'
        )
    return tuple(np.diff(marginals.astype(float), prepend=0.0).tolist())
