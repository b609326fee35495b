"""Training by EF21-Muon with the workers simulated: losses against bytes.

Every worker is simulated by `jax.vmap` and sees its own piece of the text; the bytes
are those that the traced step, the same one over a mesh, asks to be sent. The learning
rate and the seed are arguments of the step: one program serves the sweep and all seeds.
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
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float, Int
from tqdm import trange

import dropmuon_optax as dm
from benchmarks.common import text
from benchmarks.ef21_muon.compressors import Pair, pair
from benchmarks.ef21_muon.loop import mean, pieces
from benchmarks.models import nanogpt
from dropmuon_optax.counters.bytes import count_traced_bytes

AXIS = "data"


class Plan(NamedTuple):
    """All that a run's numbers depend on, beside pair, rate, seed and the code."""

    num_blocks: int = 2
    width: int = 64
    num_heads: int = 4
    length: int = 64  # tokens of context
    batch_size: int = 4  # windows of a step, of each worker
    num_workers: int = 4
    num_steps: int = 300
    num_evaluations: int = 6
    num_validation: int = 192  # windows, the same at each evaluation
    momentum: float = 0.9
    initial: str = "zeros"
    warm_down: float = 0.5  # share of the steps over which the rate falls to 0


class Point(NamedTuple):
    """What an evaluation saw."""

    step: int
    num_tokens: int  # of all workers
    bytes_sent: int  # by each worker
    bytes_to_server: int  # of these, its messages alone
    validation_loss: float | None  # at X; None: not finite
    validation_loss_of_w: float | None  # where the workers differentiate


class Task(NamedTuple):
    """One pair of compressors, compiled once."""

    plan: Plan
    corpus: text.Corpus
    num_parameters: int
    bytes_per_step: dict[str, int | float]  # by kind of collective
    first: Callable[..., Any]  # seed -> (params, state)
    step: Callable[..., Any]  # (params, state, peak, windows) -> (params, state, loss)
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


def build(plan: Plan, name: str, corpus: text.Corpus | None = None) -> Task:
    """Compiles the step and the evaluation of a pair; on Shakespeare unless told."""
    corpus = text.load("shakespeare") if corpus is None else corpus
    config = config_of(plan, corpus.vocab_size)
    apply, params = nanogpt.build(config, seed=0)

    def loss_fn(params: Any, windows: Int[Array, "B T+1"]) -> Float[Array, ""]:
        logits = apply(params, windows[:, :-1])  # (B, T, V)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
        return losses.mean()

    transformation = functools.partial(ef21_muon, plan, config, pair(name))
    shapes = jax.eval_shape(transformation(0.0, 0).init, params)

    def program(mesh: Any) -> Callable[..., Any]:
        def step(params: Any, state: Any, peak: Any, windows: Any) -> Any:
            def worker(params: Any, state: Any, windows: Any) -> Any:
                gradient = jax.value_and_grad(loss_fn)
                loss, grads = gradient(dm.local_params(params, AXIS), windows)
                tx = transformation(peak, 0)  # the state has the run's key
                updates, state = tx.update(grads, state, params)
                params = optax.apply_updates(params, updates)
                return params, state, jax.lax.pmean(loss, AXIS)

            mapped = dm.worker_map(worker, AXIS, shapes, mesh)
            return mapped(params, state, windows)

        return step

    rows = plan.num_workers * plan.batch_size
    windows = jax.ShapeDtypeStruct((rows, plan.length + 1), jnp.int32)
    mesh = AbstractMesh((plan.num_workers,), (AXIS,))
    sent = count_traced_bytes(program(mesh), params, shapes, jnp.float32(0), windows)

    def first(seed: int) -> Any:
        params = nanogpt.build(config, seed=seed)[1]
        return params, jax.jit(transformation(0.0, seed).init)(params)

    held_out = jnp.asarray(
        text.validation_batch(corpus.validation, plan.num_validation, plan.length)
    )

    @jax.jit
    def losses(params: Any, state: Any) -> Any:
        X = dm.ef21_muon_eval_params(state, params)
        return loss_fn(X, held_out), loss_fn(params, held_out)

    size = sum(x.size for x in jax.tree.leaves(params))
    step = jax.jit(program(None), donate_argnums=(0, 1))
    return Task(plan, corpus, size, sent.by_kind, first, step, losses)


def ef21_muon(
    plan: Plan, config: nanogpt.Config, compressors: Pair, peak: Any, seed: int
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
        momentum=plan.momentum,
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


def train(task: Task, peak: float, seed: int, label: str) -> dict[str, Any]:
    """One run; returns what the record says of it, history and time included."""
    plan = task.plan
    params, state = task.first(seed)
    looks = np.linspace(0, plan.num_steps, plan.num_evaluations + 1).round().astype(int)
    history, start = [point(task, params, state, 0)], perf_counter()
    for step in trange(plan.num_steps, desc=label, leave=False, mininterval=5.0):
        windows = batch(plan, task.corpus, seed, step)
        params, state, _ = task.step(params, state, jnp.float32(peak), windows)
        if step + 1 in looks:
            history.append(point(task, params, state, step + 1))
            if history[-1].validation_loss is None:
                break
    return {
        "learning_rate": peak,
        "seed": seed,
        "final_validation_loss": history[-1].validation_loss,
        "final_validation_loss_of_w": history[-1].validation_loss_of_w,
        "time_s": perf_counter() - start,
        "history": [seen._asdict() for seen in history],
    }


def point(task: Task, params: Any, state: Any, step: int) -> Point:
    plan, sent = task.plan, task.bytes_per_step
    at_x, at_w = task.losses(params, state)
    return Point(
        step,
        step * plan.num_workers * plan.batch_size * plan.length,
        round(step * (sent["all-to-all"] + sent["all-gather"])),
        round(step * sent["all-to-all"]),
        mean([at_x]),
        mean([at_w]),
    )


def order(run: dict[str, Any]) -> float:
    """By which runs are compared: the final loss at X, infinite if there is none."""
    found = run["final_validation_loss"]
    return math.inf if found is None else found
