"""The methods that `drop_muon.recipe` compares, and what a run of each does.

A method is a row of stages: from a share of the budget on, some layers move. What a
stage costs is counted in the unit of the budget, whatever it is: seconds by a table of
measured step times, FLOPs of compiled programs, or steps. So one plan serves equal
time, equal FLOPs and equal steps, and it is known before the run.

From the stage on in which the first layers have settled for good, steps may start from
their kept outputs (`dm.cache_features`); filling is paid for out of the same budget.
"""

import bisect
import itertools
from typing import NamedTuple

import jax

import dropmuon_optax as dm
from benchmarks.models import cnn

NUM_LAYERS = len(cnn.LAYER_ORDER)
BATCH_SIZE = 32  # samples; of `muon_large_batch`, twice as many


class Stage(NamedTuple):
    """What holds for a share of the budget."""

    share: float  # of the budget
    sampling: dm.samplings.Sampling
    # How often each sample's kept outputs of the settled layers are read; 0 keeps none
    # and runs the settled layers at every step.
    passes: float = 0.0


class Method(NamedTuple):
    """A row of the tables."""

    stages: tuple[Stage, ...]
    learning_rate: float = 0.02  # at the start
    batch_size: int = BATCH_SIZE
    # The share of the budget at which layer i's rate has fallen to 0.
    rate_ends: tuple[float, ...] = (1.0,) * NUM_LAYERS
    # Whether a stage reads the samples of which the one before kept outputs first, and
    # keeps its own from those: cheaper than from images, and fewer samples are new.
    keeps_on: bool = False


class Kind(NamedTuple):
    """A compiled train step: what it reads, moves and is made for."""

    active: tuple[bool, ...] | None  # None: plain training of all layers
    start: int = 0  # the first layer that is run; before it, outputs are kept
    batch_size: int = BATCH_SIZE
    scaled: bool = False  # whether each layer has a rate of its own


def suffix(first: int) -> dm.samplings.Progressive:
    """The layers from `first` on, at every step."""
    return dm.samplings.Progressive([float(i == first) for i in range(NUM_LAYERS)])


FULL = dm.samplings.Full()


def settling(
    shares: tuple[float, float, float], passes: tuple[float, float]
) -> tuple[Stage, Stage, Stage]:
    """All layers; then all but conv1; then conv3 and the head alone.

    Args:
        shares: Of the budget, of each stage.
        passes: How often the kept outputs are read in the second and the third; 0 keeps
            none.
    """
    samplings = (FULL, suffix(1), suffix(2))
    first, second, third = map(Stage, shares, samplings, (0.0, *passes))
    return first, second, third


def ends(shares: tuple[float, float, float]) -> tuple[float, ...]:
    """Where the recipe of these shares freezes each layer."""
    return (shares[0], shares[0] + shares[1], 1.0, 1.0)


# Chosen on seed 100: of Fashion-MNIST for both sets of gray images, of CIFAR-10.
EARLY, LATER = (0.1, 0.3, 0.6), (0.3, 0.4, 0.3)
FULL_STAGE = (Stage(1.0, FULL),)

METHODS = {
    "muon": Method(FULL_STAGE),
    "freeze_and_keep": Method(settling(EARLY, (2.0, 3.0))),
    "freeze_later": Method(settling(LATER, (0.0, 2.0))),
    "freeze_later_and_keep": Method(settling(LATER, (1.0, 2.0)), keeps_on=True),
    "freeze": Method(settling(EARLY, (0.0, 0.0))),
    "uniform": Method((Stage(1.0, dm.samplings.Progressive()),)),
    "muon_early_decay": Method(FULL_STAGE, rate_ends=ends(EARLY)),
    "muon_later_decay": Method(FULL_STAGE, rate_ends=ends(LATER)),
    "muon_large_batch": Method(FULL_STAGE, batch_size=2 * BATCH_SIZE),
}


class Costs(NamedTuple):
    """What steps and kept samples cost, in the unit of a budget."""

    step: dict[Kind, float]
    # The layers `start`, …, `stop` − 1 -> of keeping one sample's outputs of the last.
    kept_sample: dict[tuple[int, int], float]
    # `dm.cache_features` runs its first batch twice more, to see that it may be kept.
    num_checked: int

    def of_keeping(self, part: "Part") -> float:
        """What it costs to keep the outputs that a part reads."""
        total = 0.0
        for (start, stop), num_samples in part.sources():
            total += (num_samples + self.num_checked) * self.kept_sample[start, stop]
        return total


class Part(NamedTuple):
    """A stage, as planned."""

    first_step: int
    kinds: list[Kind]  # of its steps
    stop: int = 0  # the outputs of so many layers are kept
    num_kept: int = 0  # of so many samples; 0: none
    # Samples among them of which the part before kept outputs, of so many layers.
    num_known: int = 0
    known_stop: int = 0

    def sources(self) -> list[tuple[tuple[int, int], int]]:
        """(start, stop) -> samples whose outputs are computed by these layers."""
        known = ((self.known_stop, self.stop), self.num_known)
        new = ((0, self.stop), self.num_kept - self.num_known)
        return [source for source in (known, new) if source[1]]


class Plan(NamedTuple):
    """All that a run does."""

    sampling: dm.samplings.Sampling
    parts: list[Part]
    progress: list[float]  # of each step: what was spent of the budget before it
    cost: float


def kind_of(method: Method, active: tuple[bool, ...], start: int) -> Kind:
    """The train step of a method; full-network ones know of no layers to drop."""
    drops = any(stage.sampling != FULL for stage in method.stages)
    scaled = min(method.rate_ends) < 1
    return Kind(active if drops else None, start, method.batch_size, scaled)


def kinds(method: Method) -> list[Kind]:
    """All train steps that a method may take."""
    found = []
    for stage in method.stages:
        always = stage.sampling.always(NUM_LAYERS)
        settled = stage.sampling.settled(NUM_LAYERS, 0)
        start = settled if stage.passes else 0
        for first in range(settled, NUM_LAYERS):
            active = tuple(i >= first for i in range(NUM_LAYERS))
            if all(moves <= here for moves, here in zip(always, active, strict=True)):
                found.append(kind_of(method, active, start))
    return list(dict.fromkeys(found))


def plan(
    method: Method, budget: float, costs: Costs, num_samples: int, seed: int
) -> Plan:
    """What fits into a budget, in the unit of `costs`; at least one step a stage.

    Args:
        method: What to plan for.
        budget: Of the whole run.
        costs: Of steps and kept samples, in the unit of the budget.
        num_samples: Training samples: more can't be kept.
        seed: Of the sets of layers.
    """
    key, step, spent, end = jax.random.key(seed), 0, 0.0, 0.0
    parts, progress, stages = [], [], []
    for stage in method.stages:
        end += stage.share * budget
        part = Part(step, [])
        if stage.passes:
            before = parts[-1] if parts else part
            part = keeping(method, stage, part, before, end - spent, costs, num_samples)
            spent += costs.of_keeping(part)
        for count in itertools.count(step):
            active = dm.active_layers(stage.sampling, NUM_LAYERS, key, count)
            kind = kind_of(method, active, part.stop)
            if part.kinds and spent + costs.step[kind] > end:
                break
            part.kinds.append(kind)
            progress.append(min(spent / budget, 1.0))
            spent += costs.step[kind]
        stages.append((step, stage.sampling))
        step += len(part.kinds)
        parts.append(part)
    sampling = dm.samplings.Staged(stages)
    return Plan(sampling, parts, progress, spent)


def keeping(
    method: Method,
    stage: Stage,
    part: Part,
    before: Part,
    budget: float,
    costs: Costs,
    num_samples: int,
) -> Part:
    """The part with as many kept samples as a budget can keep and read.

    Those of which the part before kept outputs come first if the method keeps on.
    """
    stop = stage.sampling.settled(NUM_LAYERS, part.first_step)
    kind = kind_of(method, stage.sampling.always(NUM_LAYERS), stop)
    reading = stage.passes * costs.step[kind] / method.batch_size

    def kept(num_kept: int) -> Part:
        num_known = min(num_kept, before.num_kept) if method.keeps_on else 0
        stops = before.stop if num_known else 0
        return part._replace(
            stop=stop, num_kept=num_kept, num_known=num_known, known_stop=stops
        )

    counts = range(method.batch_size, num_samples + 1, method.batch_size)
    fitting = bisect.bisect_right(
        counts, budget, key=lambda n: n * reading + costs.of_keeping(kept(n))
    )
    return kept(counts[max(fitting, 1) - 1])


def rates(method: Method, progress: float) -> list[float]:
    """Of each layer, the share of the learning rate: linear, to 0 at its end."""
    return [max(0.0, 1 - progress / end) for end in method.rate_ends]


def cost(plan: Plan, costs: Costs) -> float:
    """What a planned run costs in another unit."""
    total = 0.0
    for part in plan.parts:
        total += sum(costs.step[kind] for kind in part.kinds)
        total += costs.of_keeping(part)
    return total
