"""Training by EF21-Muon with the workers simulated: losses, from which bytes follow.

Every worker is simulated by `jax.vmap` and sees its own piece of the text; the bytes
are those that the traced step, the same one over a mesh, asks to be sent (`sent`).
Learning rate, momentum and seed are arguments of the step: one program serves a sweep.
Where layers are dropped there is one program for each set, drawn on the host.
"""

import functools
import math
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from tqdm import trange

import dropmuon_optax as dm
from benchmarks.common import text
from benchmarks.ef21_muon.compressors import Pair, pair
from benchmarks.ef21_muon.loop import mean, pieces
from benchmarks.models import nanogpt
from dropmuon_optax.samplings import Progressive

AXIS = "data"
Active = tuple[bool, ...]


def half_full(num_layers: int) -> Progressive:
    """Every other step moves all layers; the others' cutoffs are uniform."""
    others = 0.5 / (num_layers - 1)
    return Progressive((0.5, *[others] * (num_layers - 1)))


# Of a number of layers, what moves; all of them where there is no sampling.
SAMPLINGS: dict[str, Callable[[int], Progressive | None]] = {
    "full": lambda num_layers: None,
    "uniform": lambda num_layers: Progressive(),
    "half_full": half_full,
}


class Plan(NamedTuple):
    """What a run's numbers depend on, beside its pair and `Run`, and the code."""

    num_blocks: int = 2
    width: int = 64
    num_heads: int = 4
    length: int = 64  # tokens of context
    batch_size: int = 4  # windows of a step, of each worker
    num_workers: int = 4
    num_steps: int = 300
    num_evaluations: int = 6
    num_validation: int = 192  # windows, the same at each evaluation
    initial: str = "zeros"
    sampling: str = "full"
    warm_down: float = 0.5  # share of the steps over which the rate falls to 0


class Point(NamedTuple):
    """What an evaluation saw."""

    step: int
    num_tokens: int  # of all workers
    steps_from: list[int]  # those of them whose lowest moving layer is 0, 1, …
    validation_loss: float | None  # at X; None: not finite
    validation_loss_of_w: float | None  # where the workers differentiate


class Run(NamedTuple):
    """What differs from run to run of one task."""

    rate: float
    momentum: float
    seed: int


class Task(NamedTuple):
    """One pair of compressors, compiled once for each set of layers."""

    plan: Plan
    corpus: text.Corpus
    num_layers: int
    first: Callable[..., Any]  # seed -> (params, state)
    step: Callable[..., Any]  # (params, state, peak, momentum, windows, active) -> …
    losses: Callable[..., Any]  # (params, state) -> at X, at W


def config_of(plan: Plan, vocab_size: int) -> nanogpt.Config:
    return nanogpt.Config(
        plan.num_blocks, plan.num_heads, plan.width, vocab_size, tied=False
    )


def check(options: Any) -> None:
    """Loads the text, and sees whether workers can read windows of it.

    Raises:
        ValueError: If it is too short, or the heads don't fit the width.
    """
    corpus = text.load("shakespeare")
    for part in (corpus.train, corpus.validation):
        text.num_starts(part, options.length)
    if options.width % options.num_heads:
        raise ValueError(
            f"`width` must be a multiple of the {options.num_heads} heads, "
            f"got {options.width}"
        )


def loss_of(apply: Callable[..., Any]) -> Callable[..., Any]:
    """(params, windows) -> mean cross-entropy / nats per character."""

    def loss_fn(params: Any, windows: Int[Array, "B T+1"]) -> Float[Array, ""]:
        logits = apply(params, windows[:, :-1])  # (B, T, V)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
        return losses.mean()

    return loss_fn


def program(
    plan: Plan, name: str, config: nanogpt.Config, loss_fn: Any, mesh: Any = None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The first state, and a step of all workers: simulated, or over a mesh."""
    layers = nanogpt.layers(config)
    transformation = functools.partial(ef21_muon, plan, config, pair(name))
    shapes = jax.eval_shape(transformation(0.0, 0.5, 0).init, nanogpt_shapes(config))

    def step(
        params: Any,
        state: Any,
        peak: Any,
        momentum: Any,
        windows: Any,
        active: Active | None,
    ) -> Any:
        def worker(params: Any, state: Any, windows: Any) -> Any:
            own = dm.local_params(params, AXIS)
            gradient = dm.value_and_grad(loss_fn, layers)
            loss, grads = gradient(own, windows, active=active)
            tx = transformation(peak, momentum, 0)  # the state has the run's key
            updates, state = tx.update(grads, state, params, active=active)
            params = optax.apply_updates(params, updates)
            return params, state, jax.lax.pmean(loss, AXIS)

        return dm.worker_map(worker, AXIS, shapes, mesh)(params, state, windows)

    return lambda params, seed: transformation(0.0, 0.5, seed).init(params), step


def nanogpt_shapes(config: nanogpt.Config) -> Any:
    return jax.eval_shape(lambda: nanogpt.build(config, seed=0)[1])


def build(plan: Plan, name: str, corpus: text.Corpus | None = None) -> Task:
    """Jits the step and the evaluation of a pair; on Shakespeare unless told."""
    corpus = text.load("shakespeare") if corpus is None else corpus
    config = config_of(plan, corpus.vocab_size)
    loss_fn = loss_of(nanogpt.build(config, seed=0)[0])
    init, step = program(plan, name, config, loss_fn)

    def first(seed: int) -> Any:
        params = nanogpt.build(config, seed=seed)[1]
        return params, jax.jit(init, static_argnums=1)(params, seed)

    held_out = jnp.asarray(
        text.validation_batch(corpus.validation, plan.num_validation, plan.length)
    )

    @jax.jit
    def losses(params: Any, state: Any) -> Any:
        X = dm.ef21_muon_eval_params(state, params)
        return loss_fn(X, held_out), loss_fn(params, held_out)

    step = jax.jit(step, donate_argnums=(0, 1), static_argnames="active")
    num_layers = len(nanogpt.layer_order(config))
    return Task(plan, corpus, num_layers, first, step, losses)


def ef21_muon(
    plan: Plan,
    config: nanogpt.Config,
    compressors: Pair,
    peak: Any,
    momentum: Any,
    seed: int,
) -> Any:
    """The optimizer: a constant rate, then linearly to 0 after the last step."""
    falling = max(1.0, plan.warm_down * plan.num_steps)

    def rate(count: Any) -> Any:
        left = (plan.num_steps - jnp.asarray(count, jnp.float32)) / falling
        return peak * jnp.minimum(1.0, left)

    return dm.ef21_muon(
        rate,
        nanogpt.layers(config),
        *compressors,
        momentum=momentum,
        axis_name=AXIS,
        num_workers=plan.num_workers,
        initial=plan.initial,
        key=jax.random.key(seed),
    )


def batch(plan: Plan, corpus: text.Corpus, seed: int, step: int) -> np.ndarray:
    """A step's windows, each worker's from its own piece of the text."""
    n = plan.num_workers
    rows = [
        text.batch(
            pieces(corpus.train, n, worker),
            n * plan.batch_size,
            plan.length,
            seed=seed,
            step=step,
            host=worker,
            num_hosts=n,
        )
        for worker in range(n)
    ]
    return np.concatenate(rows)


def train(task: Task, run: Run, label: str) -> dict[str, Any]:
    """One run; returns what the record says of it, history and time included."""
    plan = task.plan
    params, state = task.first(run.seed)
    looks = np.linspace(0, plan.num_steps, plan.num_evaluations + 1).round().astype(int)
    steps_from = [0] * task.num_layers
    history = [point(task, params, state, steps_from)]
    sampling = SAMPLINGS[plan.sampling](task.num_layers)
    settings = jnp.float32(run.rate), jnp.float32(run.momentum)
    start = perf_counter()
    for step in trange(plan.num_steps, desc=label, leave=False, mininterval=5.0):
        windows, active = batch(plan, task.corpus, run.seed, step), None
        if sampling is not None:
            key = jax.random.key(run.seed)
            active = dm.active_layers(sampling, task.num_layers, key, step)
        params, state, _ = task.step(params, state, *settings, windows, active=active)
        steps_from[0 if active is None else active.index(True)] += 1
        if step + 1 in looks:
            history.append(point(task, params, state, steps_from))
            if history[-1].validation_loss is None:
                break
    return {
        "learning_rate": run.rate,
        "momentum": run.momentum,
        "seed": run.seed,
        "final_validation_loss": history[-1].validation_loss,
        "final_validation_loss_of_w": history[-1].validation_loss_of_w,
        "time_s": perf_counter() - start,
        "history": [seen._asdict() for seen in history],
    }


def point(task: Task, params: Any, state: Any, steps_from: list[int]) -> Point:
    plan, step = task.plan, sum(steps_from)
    at_x, at_w = task.losses(params, state)
    tokens = step * plan.num_workers * plan.batch_size * plan.length
    return Point(step, tokens, list(steps_from), mean([at_x]), mean([at_w]))


def order(run: dict[str, Any]) -> float:
    """By which runs are compared: the final loss at X, infinite if there is none."""
    found = run["final_validation_loss"]
    return math.inf if found is None else found
