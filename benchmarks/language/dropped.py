"""Train steps in which not every layer is run, or moves, or moves by its own oracle.

A method has one program for each distinct `Sets`.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import optax

import dropmuon_optax as dm
from benchmarks.language.plan import Plan, Sets, step_flops
from benchmarks.language.steps import (
    Method,
    Model,
    Rate,
    Tokens,
    accumulate,
    build_loss,
    replicate,
)
from benchmarks.models import nanogpt

FREEZE_FROM = 0.75  # of the steps, by `staged`
OUTPUTS = r"(out|down)/kernel$"  # what the two branches of a block end in
PERIOD = 2  # of spectral steps, by `alternating`

SamplingOf = Callable[[Model, Plan], dm.samplings.Sampling]


def uniform(model: Model, plan: Plan) -> dm.samplings.Sampling:
    """That of Drop-Muon's experiments: a uniform progressive cutoff."""
    del model, plan
    return dm.samplings.Progressive()


def staged(model: Model, plan: Plan) -> dm.samplings.Sampling:
    """All layers for a share of the steps, then the last block and the head alone."""
    num_layers = len(nanogpt.layer_order(model.config))
    later = dm.samplings.Progressive(tuple(np.eye(num_layers)[-2]))
    first = max(1, round(FREEZE_FROM * plan.num_steps))
    return dm.samplings.Staged(((0, dm.samplings.Full()), (first, later)))


def grown(model: Model, plan: Plan) -> dm.samplings.Sampling:
    """Some blocks at first, for the shares of the FLOPs that `model.growth` says."""
    shares, rows = read_growth(model.growth, model.config)
    costs = [
        sum(step_flops(model.config, "gluon", plan, Sets(row, row, row)))
        for row in rows
    ]
    steps = np.divide(shares, costs)  # of each stage, up to a factor
    firsts = np.cumsum([0.0, *steps[:-1]]) / steps.sum() * plan.num_steps
    stages = {round(first): row for first, row in zip(firsts, rows, strict=True)}
    return dm.samplings.Grown(tuple(stages.items()))


def depth(model: Model, plan: Plan) -> dm.samplings.Sampling:
    """Stochastic depth: each block is there with the same probability."""
    del plan
    return dm.samplings.StochasticDepth(probabilities(model))


def some(model: Model, plan: Plan) -> dm.samplings.Sampling:
    """Each block moves with the same probability, embedding and head always do."""
    del plan
    return dm.samplings.Independent(probabilities(model))


def probabilities(model: Model) -> tuple[float, ...]:
    """Of each layer: that of a block is `model.keep`."""
    order = nanogpt.layer_order(model.config)
    return tuple(model.keep if name in blocks_of(order) else 1.0 for name in order)


def blocks_of(order: list[str]) -> list[str]:
    """The layers that are blocks."""
    return [name for name in order if name.startswith("block")]


def read_growth(
    growth: str, config: nanogpt.Config
) -> tuple[list[float], list[tuple[bool, ...]]]:
    """Shares of the FLOPs, and which layers are present; the last stage has all.

    Args:
        growth: Such as "0.3:1000,0.4:1100": one of four blocks for 0.3 of the FLOPs,
            two for 0.4 of them, then all. "half" stands for the first half.
        config: Of the network.

    Raises:
        ValueError: If it is none such.

    >>> read_growth("0.75:half", nanogpt.PRESETS["micro"])[0]
    [0.75, 0.25]
    """
    num, order = config.num_layers, nanogpt.layer_order(config)
    shares, rows = [], []
    try:
        for stage in growth.split(","):
            share, _, blocks = stage.partition(":")
            if blocks == "half":
                blocks = "1" * (num - num // 2) + "0" * (num // 2)
            if len(blocks) != num or not set(blocks) <= {"0", "1"} or "1" not in blocks:
                raise ValueError
            shares.append(float(share))
            marks = dict(zip(blocks_of(order), blocks, strict=True))
            rows.append(tuple(marks.get(name, "1") == "1" for name in order))
        if not min(shares) > 0 or not sum(shares) < 1:
            raise ValueError
    except ValueError:
        example = f"0.8:{'1' * (num - num // 2)}{'0' * (num // 2)}"
        raise ValueError(
            f"`growth` must be stages share:blocks for {num} blocks, with shares that "
            f"sum to less than 1, such as {example!r}, got {growth!r}"
        ) from None
    return [*shares, 1.0 - sum(shares)], [*rows, (True,) * len(order)]


def dropping(
    sampling_of: SamplingOf,
    model: Model,
    *,
    around: bool = False,
    oracles: dm.samplings.Sampling | None = None,
) -> Method:
    """Drop-Muon, its backpropagation cut where it may be.

    Args:
        sampling_of: (model, plan) -> sampling.
        model: What to train.
        around: Whether gradients go around blocks that don't move, not through them.
        oracles: Which of the layers that move do so by the oracle of their norm; the
            others take a sign step of their momentum. None is all.
    """
    num_layers = len(nanogpt.layer_order(model.config))
    sampling = cache(partial(sampling_of, model))
    key_of = cache(jax.random.key)  # the same object, so that it is fetched once
    any_key = key_of(0)  # drawn here: not inside the trace of a step
    outside = None if oracles is None else model.sign_layers

    def transformation(rate: Any, key: jax.Array):
        # The set is given at every step: this sampling is never drawn from.
        anything = dm.samplings.Independent((0.5,) * num_layers)
        return dm.drop_muon(rate, model.layers, anything, key=key, outside=outside)

    @partial(jax.jit, static_argnames="sets", donate_argnums=(0, 1))
    def step(params: Any, state: Any, rate: Rate, tokens: Tokens, *, sets: Sets):
        loss_fn = partial(build_loss(model), sets=sets)
        gradient = dm.value_and_grad(loss_fn, model.layers)
        gradient = partial(gradient, active=sets.active)
        loss, grads = accumulate(gradient, params, tokens)
        tx = transformation(lambda count: rate, any_key)  # the state has the run's
        updates, state = tx.update(grads, state, params, active=sets.oracle)
        return optax.apply_updates(params, updates), state, loss

    def sets_at(plan: Plan, step: int) -> Sets:
        where = num_layers, key_of(plan.seed), step
        drawn = moved = dm.active_layers(sampling(plan), *where)
        if oracles is not None:  # layers that are absent have no momentum to step by
            spectral = dm.active_layers(oracles, *where)
            moved = tuple(a and b for a, b in zip(drawn, spectral, strict=True))
        return Sets(dm.present_layers(sampling(plan), *where), drawn, moved, around)

    return Method(
        init=lambda params, seed: replicate(
            transformation(lambda count: 0.0, key_of(seed)).init(params), model.mesh
        ),
        step=step,
        sets_at=sets_at,
    )


def growing(model: Model, oracles: dm.samplings.Sampling | None = None) -> Method:
    """Drop-Muon on a network that grows, whose late blocks enter without a jump."""
    method = dropping(grown, model, oracles=oracles)

    def start(params: Any, plan: Plan) -> Any:
        sets = method.sets_at(plan, 0)
        assert sets is not None
        return dm.zero_outputs(params, model.layers, sets.present, OUTPUTS)

    return method._replace(start=start)


def thinned(model: Model) -> Method:
    """Drop-Muon under stochastic depth, evaluated as its authors do.

    There each branch has the share of the steps in which it was there.
    """

    def evaluated(params: Any, state: Any) -> Any:
        del state

        def scale(path: Any, x: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return x * model.keep if name.endswith(("out/kernel", "down/kernel")) else x

        return jax.tree_util.tree_map_with_path(scale, params)

    return dropping(depth, model)._replace(evaluated=jax.jit(evaluated))


def alternating(model: Model, *, grows: bool = False) -> Method:
    """The oracle at every other step, a sign step of the same momentum in between."""
    periodic = dm.samplings.Periodic(PERIOD)
    if grows:
        return growing(model, periodic)
    return dropping(lambda model, plan: dm.samplings.Full(), model, oracles=periodic)
