"""The methods that `drop_muon.cnn` compares, and what they do at each step.

Muon and Drop-Muon are one optimizer here, `muon` of `common/optimizers.py`
(convolutions by Muon, biases and the head by AdamW): Drop-Muon is `dm.drop_layers`
around it, with a backward pass that stops at the cutoff.

What a run does is known before it starts, a `Plan`: the layers that move at each step
and the learning rate. It falls linearly to zero with the steps, or, under a budget of
time, with the time that the steps so far take by a table of measured step times.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dropmuon_optax as dm
from benchmarks.common import data, timing, train
from benchmarks.common.optimizers import ADAM_SHARE, OPTIMIZERS
from benchmarks.models import cnn

NUM_LAYERS = len(cnn.LAYER_ORDER)
Active = tuple[bool, ...] | None  # None: plain training of all layers
CUTOFFS = [tuple(i >= s for i in range(NUM_LAYERS)) for s in range(NUM_LAYERS)]


class Method(NamedTuple):
    """A row of the tables."""

    optimizer: str  # of `OPTIMIZERS`
    learning_rate: float  # at the start
    # (number of steps, optimal probabilities) -> which layers move; None is all
    sampling: Callable[[int, tuple[float, ...]], dm.samplings.Sampling] | None = None


FULL_SHARE = 0.2  # of the steps of `freeze_out`; 0.2 of steps is 0.3 to 0.4 of time
LAST_TWO = (0.0,) * (NUM_LAYERS - 2) + (1.0, 0.0)


def freeze_out(num_steps: int, optimal: tuple[float, ...]) -> dm.samplings.Sampling:
    """All layers first, then the last two alone: what was found best."""
    del optimal
    last = dm.samplings.Progressive(LAST_TWO)
    first_steps = max(1, round(FULL_SHARE * num_steps))
    return dm.samplings.Staged(((0, dm.samplings.Full()), (first_steps, last)))


# Learning rates: the best of values a factor of 2 apart on CIFAR-10: README.md beside.
METHODS = {
    "muon": Method("muon", 0.02),
    "uniform": Method("muon", 0.02, lambda steps, _: dm.samplings.Progressive()),
    "epoch_shift": Method(
        "muon", 0.02, lambda steps, _: dm.samplings.EpochShift(steps)
    ),
    "optimal": Method(
        "muon", 0.04, lambda _, optimal: dm.samplings.Progressive(optimal)
    ),
    "freeze_out": Method("muon", 0.02, freeze_out),
    "optax_muon": Method("optax_muon", 0.02),
    "adamw": Method("adamw", 0.002),
}


class Plan(NamedTuple):
    """What to do at each step."""

    active: list[Active]
    rate_shares: list[float]  # of the learning rate at the start


def plan_steps(
    method: Method, num_steps: int, optimal: tuple[float, ...], seed: int
) -> Plan:
    """Protocol (i): a fixed number of steps."""
    shares = [1 - step / num_steps for step in range(num_steps)]
    draw = drawing(method, num_steps, optimal, seed)
    return Plan([draw(step) for step in range(num_steps)], shares)


def plan_budget(
    method: Method,
    budget_s: float,
    step_times_s: dict[Active, float],
    optimal: tuple[float, ...],
    seed: int,
) -> Plan:
    """Protocol (ii): as many steps as fit into a budget of time, and at least one.

    Args:
        method: What to plan for.
        budget_s: Seconds of training.
        step_times_s: What a step of the method takes, by the layers that move.
        optimal: Probabilities of cutoffs.
        seed: Of the sets of layers.
    """
    num_steps = max(1, int(budget_s / max(step_times_s.values())))
    plan = Plan([], [])
    for _ in range(10):  # a sampling may depend on the number of steps
        draw = drawing(method, num_steps, optimal, seed)
        plan, elapsed_s = Plan([], []), 0.0
        for step in itertools.count():
            active = draw(step)
            if plan.active and elapsed_s + step_times_s[active] > budget_s:
                break
            plan.active.append(active)
            plan.rate_shares.append(1 - elapsed_s / budget_s)
            elapsed_s += step_times_s[active]
        if len(plan.active) == num_steps:
            break
        num_steps = len(plan.active)
    return plan


def drawing(
    method: Method, num_steps: int, optimal: tuple[float, ...], seed: int
) -> Callable[[int], Active]:
    """Step -> layers that move."""
    if method.sampling is None:
        return lambda step: None
    sampling, key = method.sampling(num_steps, optimal), jax.random.key(seed)
    return lambda step: dm.active_layers(sampling, NUM_LAYERS, key, step)


class Programs(NamedTuple):
    """The compiled train steps of an optimizer, shared by all runs on a data set."""

    init: Callable[[Any], Any]  # parameters -> state, for Drop-Muon too
    by_active: dict[Active, timing.Program]
    step_times_s: dict[Active, float]  # medians of interleaved runs


Key = tuple[str, bool]  # optimizer, whether layers are dropped


def compile_all(
    methods: list[Method],
    apply: train.Apply,
    params: Any,
    dataset: data.Dataset,
    batch_size: int,
    num_rounds: int,
) -> dict[Key, Programs]:
    """Compiles and times what the methods need, in turns, on one batch."""
    part = slice(batch_size)
    batch = (np.float32(0), dataset.train_images[part], dataset.train_labels[part])
    found, calls = {}, {}
    for key in {(method.optimizer, method.sampling is not None) for method in methods}:
        init, train_step = build_step(apply, *key)
        programs = {}
        for active in CUTOFFS if key[1] else [None]:
            state = timing.copied((params, init(params)))
            programs[active] = timing.compile_program(
                train_step, *state, *batch, active=active
            )
            calls[key, active] = timing.repeat_step(
                programs[active].call, *state, batch=batch
            )
        found[key] = Programs(init, programs, {})
    times, _ = timing.time_paired(calls, num_runs=num_rounds)
    for (key, active), measured in times.items():
        found[key].step_times_s[active] = measured.median
    return found


def build_step(apply: train.Apply, optimizer: str, drops: bool) -> tuple[Any, Any]:
    """The state's initialization and the train step, jitted, which donates its state.

    Returns:
        params -> opt_state; (params, opt_state, rate, images, labels, active) ->
        (params, opt_state, loss).
    """
    layers = cnn.muon_layers()

    def build(rate: Any) -> optax.GradientTransformationExtraArgs:
        tx = OPTIMIZERS[optimizer].build(lambda count: rate)
        if drops:  # the sets are given, so that any sampling serves
            sampling = dm.samplings.Progressive()
            return dm.drop_layers(tx, layers, sampling, key=jax.random.key(0))
        return optax.with_extra_args_support(tx)

    @partial(jax.jit, static_argnames="active", donate_argnums=(0, 1))
    def train_step(params, opt_state, rate, images, labels, active):
        loss_fn = partial(train.cross_entropy, apply)
        gradient = dm.value_and_grad(loss_fn, layers)
        loss, grads = gradient(params, images, labels, active=active)
        sets = {} if active is None else {"active": active}
        updates, opt_state = build(rate).update(grads, opt_state, params, **sets)
        return optax.apply_updates(params, updates), opt_state, loss

    return build(0.0).init, train_step


def smoothness(
    programs: Programs,
    apply: train.Apply,
    params: Any,
    dataset: data.Dataset,
    batch_size: int,
) -> list[float]:
    """L of each layer's kernel, as Muon at rate 0.02 meets it.

    After 0, 50 and 100 steps of training a step of length 0.02 is taken in one
    layer, and ‖change of that layer's gradient‖⋆ / 0.02 is read on 512 images; the
    median counts. A unit of length is what the optimizer moves a layer by at learning
    rate 1: the spectral norm (Muon's), of the head the largest entry over `ADAM_SHARE`.
    """
    norms = [dm.norms.muon_spectral()] * (NUM_LAYERS - 1)
    norms.append(dm.norms.Scaled(dm.norms.MaxEntry(), 1 / ADAM_SHARE))
    images, labels = dataset.train_images[:512], dataset.train_labels[:512]

    @jax.jit
    def gradient(params):
        grads = jax.grad(partial(train.cross_entropy, apply))(params, images, labels)
        return [matrix(grads[name]["kernel"]) for name in cnn.LAYER_ORDER]

    def probe(params):
        before, constants = gradient(params), []
        for i, name in enumerate(cnn.LAYER_ORDER):
            kernel = params[name]["kernel"]
            step = norms[i].lmo(before[i], 0.02).reshape(kernel.shape)
            moved = {**params, name: {**params[name], "kernel": kernel + step}}
            change = norms[i].dual_norm(gradient(moved)[i] - before[i])
            constants.append(float(change) / 0.02)
        return constants

    found, (call,) = [probe(params)], [p.call for p in programs.by_active.values()]
    carried = timing.copied((params, programs.init(params)))
    batches = data.batches(dataset, batch_size, 100, seed=0)
    for step, batch in enumerate(batches):
        *carried, _ = call(*carried, np.float32(0.02), *batch)
        if (step + 1) % 50 == 0:
            found.append(probe(carried[0]))
    return [float(value) for value in np.median(found, axis=0)]


def matrix(kernel: jax.Array) -> jax.Array:
    """(…, I, O) as (…·I, O)."""
    return jnp.reshape(kernel, (-1, kernel.shape[-1]))
