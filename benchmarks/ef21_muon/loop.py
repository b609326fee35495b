"""EF21-Muon on a small GPT: the loop that every worker runs, each on its own text.

A worker is a device. The training text is cut into as many pieces as there are workers,
and none sees another's piece. A step's batch is a function of (seed, step, worker), so
a run that goes on from a checkpoint ends as one that was not interrupted.
"""

import dataclasses
import math
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

import dropmuon_optax as dm
from benchmarks.common import text, timing, workers
from benchmarks.ef21_muon.steps import AXIS, Plan, first_and_step
from benchmarks.language.checkpoints import Store
from benchmarks.models import nanogpt

NUM_VALIDATION = 128  # windows, the same at each evaluation


class Point(NamedTuple):
    """What an evaluation saw."""

    step: int
    num_tokens: int  # of all workers
    train_time_s: float  # compilation, evaluation and checkpoints not counted
    train_loss: float | None  # mean over the steps since the last point
    validation_loss: float | None  # at X; None: not finite
    validation_loss_of_w: float | None  # where the workers differentiate
    sent_bytes: float  # by each worker, as counted in the program
    loopback_bytes: int | None  # by all workers, as the interface saw; None: no look


class Task(NamedTuple):
    """A plan, ready to run."""

    plan: Plan
    mesh: jax.sharding.Mesh
    corpus: text.Corpus
    params: Any
    state: Any
    program: timing.Program  # (params, state, windows) -> (params, state, loss)
    sent: Any  # its WireBytes
    losses: Callable[..., Any]  # (params, state) -> validation losses at X and at W


def check(plan: Plan, num_workers: int | None) -> None:
    """Loads the text, and sees whether workers can read windows of it.

    Raises:
        ValueError: If their pieces are too short.
    """
    corpus = text.load(plan.dataset)
    text.num_starts(pieces(corpus.train, num_workers or 1, 0), plan.length)
    text.num_starts(corpus.validation, plan.length)


def build(plan: Plan) -> Task:
    """The network, its optimizer, and the compiled step."""
    corpus = text.load(plan.dataset)
    config = nanogpt.PRESETS[plan.preset]
    config = dataclasses.replace(config, vocab_size=corpus.vocab_size)
    apply, params = nanogpt.build(config, seed=plan.seed)
    mesh = jax.make_mesh((plan.num_workers,), (AXIS,), axis_types=(AxisType.Auto,))
    workers.meet(f"{plan.method}_built")
    params = jax.device_put(params, NamedSharding(mesh, P()))

    def loss_fn(params: Any, windows: Int[Array, "B T+1"]) -> Float[Array, ""]:
        logits = apply(params, windows[:, :-1])  # (B, T, V)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
        return losses.mean()

    layers = nanogpt.layers(config)
    state, step, iterate = first_and_step(plan, layers, loss_fn, params, mesh)

    def evaluate(params: Any, state: Any, windows: Int[Array, "B T+1"]):
        return loss_fn(iterate(state, params), windows), loss_fn(params, windows)

    windows, validation = (
        batch(plan, corpus, mesh, 0),
        validation_of(plan, corpus, mesh),
    )
    program = timing.compile_program(jax.jit(step), params, state, windows)
    look = jax.jit(evaluate).lower(params, state, validation).compile()
    workers.meet(f"{plan.method}_compiled")
    sent = dm.count_wire_bytes(program.call)

    def losses(params: Any, state: Any) -> tuple[float | None, float | None]:
        at_x, at_w = look(params, state, validation)
        return mean([at_x]), mean([at_w])

    return Task(plan, mesh, corpus, params, state, program, sent, losses)


def batch(plan: Plan, corpus: text.Corpus, mesh: Any, step: int) -> jax.Array:
    """A step's windows, each worker's from its own piece of the text."""

    def draw(worker: int) -> np.ndarray:
        return text.batch(
            pieces(corpus.train, plan.num_workers, worker),
            plan.num_workers * plan.batch_size,
            plan.length,
            seed=plan.seed,
            step=step,
            host=worker,
            num_hosts=plan.num_workers,
        )

    return placed(draw, plan, mesh, plan.batch_size)


def placed(draw: Any, plan: Plan, mesh: Any, rows: int) -> jax.Array:
    """A global array of windows, `rows` for each worker, who draws its own alone."""
    shape = (plan.num_workers * rows, plan.length + 1)

    def part(index: Any) -> np.ndarray:
        return draw((index[0].start or 0) // rows)

    return jax.make_array_from_callback(shape, NamedSharding(mesh, P(AXIS)), part)


def pieces(shards: text.Shards, num_workers: int, worker: int) -> text.Shards:
    """A worker's part of every shard: contiguous, as long as any other's.

    Examples:
        >>> [pieces((np.arange(7),), 2, worker)[0].tolist() for worker in range(2)]
        [[0, 1, 2], [3, 4, 5]]
    """
    lengths = [len(shard) // num_workers for shard in shards]
    return tuple(
        shard[worker * length : (worker + 1) * length]
        for shard, length in zip(shards, lengths, strict=True)
    )


def validation_of(plan: Plan, corpus: text.Corpus, mesh: Any) -> jax.Array:
    """The windows of every evaluation, shared by the workers."""
    rows = NUM_VALIDATION // plan.num_workers
    shape = (rows * plan.num_workers, plan.length + 1)
    chosen = text.validation_batch(corpus.validation, shape[0], plan.length)
    repeated = np.resize(chosen, shape)  # if there are too few
    return placed(lambda w: repeated[w * rows : (w + 1) * rows], plan, mesh, rows)


def run(
    task: Task, store: Store | None, resume: bool, progress: workers.Progress, done: int
) -> tuple[list[Point], list[float], int | None]:
    """Trains, looks, and saves every few steps.

    Args:
        task: What to train.
        store: Where to save; None saves nothing.
        resume: Whether to go on from the newest checkpoint, if there is one.
        progress: The bar.
        done: Steps that it already shows, of other runs.

    Returns:
        What was seen, seconds per step of each stretch between two looks, and the step
        that it was resumed from.
    """
    plan, params, state = task.plan, task.params, task.state
    history = [point(task, params, state)]
    resumed_from = None
    if store is not None and resume:
        restored = store.restore({"params": params, "state": state})
        if restored is not None:
            params, state = restored[0]["params"], restored[0]["state"]
            history = [Point(**known) for known in restored[1]]
            resumed_from = history[-1].step
    times = []
    jax.block_until_ready(task.program.call(*arguments(task, params, state, 0)))
    while (start := history[-1].step) < plan.num_steps:
        stop = min(plan.num_steps, start + plan.every)
        before, clock = workers.quiet_loopback_bytes(), perf_counter()
        seen = []
        for step in range(start, stop):
            values = arguments(task, params, state, step)
            params, state, loss = task.program.call(*values)
            seen.append(loss)
            progress.update(done + step + 1, run=plan.method, loss=f"{float(loss):.3f}")
        jax.block_until_ready((params, state))
        stretch_s, after = perf_counter() - clock, workers.quiet_loopback_bytes()
        times.append(stretch_s / (stop - start))
        last = history[-1]
        history.append(
            point(task, params, state)._replace(
                step=stop,
                num_tokens=stop * plan.num_workers * plan.batch_size * plan.length,
                train_time_s=last.train_time_s + stretch_s,
                train_loss=mean(seen),
                sent_bytes=stop * task.sent.total,
                loopback_bytes=added(last.loopback_bytes, before, after),
            )
        )
        if store is not None:
            saved = {"params": params, "state": state}
            store.save(stop, saved, [known._asdict() for known in history])
    return history, times, resumed_from


def point(task: Task, params: Any, state: Any) -> Point:
    """The validation losses; the rest is as before the first step."""
    at_x, at_w = task.losses(params, state)
    return Point(0, 0, 0.0, None, at_x, at_w, 0.0, 0)


def arguments(task: Task, params: Any, state: Any, step: int) -> tuple[Any, Any, Any]:
    return params, state, batch(task.plan, task.corpus, task.mesh, step)


def added(total: int | None, before: int | None, after: int | None) -> int | None:
    if total is None or before is None or after is None:
        return None
    return total + after - before


def mean(values: list[jax.Array]) -> float | None:
    """The mean as a Python number; None where it is not finite."""
    found = float(np.mean(jax.device_get(values)))
    return found if math.isfinite(found) else None
