"""What a run of a language model is to do, and what its steps cost."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from benchmarks.language import costs
from benchmarks.models.depth import Active
from benchmarks.models.nanogpt import Config


class Sets(NamedTuple):
    """What a step does with each layer; static: one program is compiled for each."""

    present: Active  # run
    active: Active  # differentiated
    oracle: Active  # moved by the oracle of its own norm
    around: bool = False  # whether gradients go around blocks that aren't active


class Plan(NamedTuple):
    """What to read, how long to train, and how often to look."""

    num_steps: int
    batch_size: int  # windows of a step, of all devices together
    length: int  # tokens of context
    learning_rate: float  # peak
    num_accumulation: int = 1  # parts of a batch, one after the other
    warm_down: float = 0.3  # share of the FLOPs over which the rate falls to 0
    seed: int = 0  # of weights, batches, and the layers that move
    num_evaluations: int = 20  # evenly spaced; one more before the first step
    num_validation: int = 64  # windows, the same at each evaluation

    def check(self, num_devices: int) -> None:
        """ValueError if a batch can't be shared by the devices."""
        if self.batch_size % (self.num_accumulation * num_devices):
            raise ValueError(
                f"`batch_size` must be a multiple of the {self.num_accumulation} "
                f"parts times the {num_devices} devices, got {self.batch_size}"
            )

    @property
    def part_size(self) -> int:
        """Windows that go through the network at once."""
        return self.batch_size // self.num_accumulation

    def rate_at(self, spent: float) -> np.float32:
        """The learning rate: constant, then linearly to 0 after the last step.

        Args:
            spent: The share of the run's FLOPs that the steps before have cost; of its
                steps, where all cost the same.
        """
        left = (1.0 - spent) / max(1.0 / self.num_steps, self.warm_down)
        return np.float32(self.learning_rate * min(1.0, left))


SetsAt = Callable[[Plan, int], Sets | None]  # (plan, step) -> what it does; None: all


def step_flops(
    config: Config, name: str, plan: Plan, sets: Sets | None
) -> tuple[float, float]:
    """Of one step: the network's, and the optimizer's."""
    tokens = plan.batch_size * plan.length
    active, present, oracle, around = None, None, None, False
    if sets is not None:
        present, active, oracle, around = sets
    return (
        tokens * costs.model_flops(config, plan.length, active, present, around),
        costs.oracle_flops(config, name, oracle),
    )


def flops_of_steps(
    config: Config, name: str, plan: Plan, sets_at: SetsAt
) -> Float[np.ndarray, "N 2"]:
    """Those of every step, the network's and the optimizer's."""
    sets = [sets_at(plan, step) for step in range(plan.num_steps)]
    known = {some: step_flops(config, name, plan, some) for some in set(sets)}
    return np.array([known[some] for some in sets])


def within(
    config: Config, name: str, plan: Plan, sets_at: SetsAt, budget: float
) -> Plan:
    """The plan with as many steps as cost no more than a budget.

    Args:
        config: The size of the network.
        name: The optimizer.
        plan: But for its number of steps.
        sets_at: What each step does; it may depend on their number.
        budget: In steps that move all layers by Gluon.

    Raises:
        ValueError: If the budget is none of a single step.
    """
    limit = budget * sum(step_flops(config, "gluon", plan, None))

    def fits(num_steps: int) -> bool:
        longer = plan._replace(num_steps=num_steps)
        return flops_of_steps(config, name, longer, sets_at).sum() <= limit * (1 + 1e-9)

    if not fits(1):
        raise ValueError(f"`budget` must be enough for a step, got {budget}")
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return plan._replace(num_steps=low)
