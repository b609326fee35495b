"""What `smoothness` trains: two tasks, runs that measure, and runs that compare.

Gluon with constant radii and momentum, as in the published experiment; its learning
rate is an argument of the compiled step, so that a sweep compiles once.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import dropmuon_optax as dm
from benchmarks.common import data, text, train
from benchmarks.models import cnn, nanogpt

MOMENTUM = 0.9
IMAGES = {"batch_size": 16, "validation": 500}
TEXT = {"batch_size": 8, "length": 64, "validation": 64}
GPT = nanogpt.Config(num_layers=2, num_heads=2, width=64, vocab_size=65, tied=False)


class Task(NamedTuple):
    """A network to train, and where its learning rates are looked for."""

    name: str
    dataset: str
    loss: Callable[..., jax.Array]  # (params, *batch) -> mean loss in nats
    params: Any
    layers: Any  # norms and radii as published
    learning_rate: float  # the middle of the sweep
    batches: Callable[[int], Iterator[Any]]  # number of steps -> that many batches
    validation: tuple[Any, ...]  # one batch


def on_images(seed: int, dataset: str = "fashion_mnist") -> Task:
    """The small three-layer CNN."""
    images = data.load(dataset)
    shape = images.train_images.shape[1:]
    apply, params = cnn.build(shape, "small", seed=seed)
    size, count = IMAGES["batch_size"], IMAGES["validation"]
    return Task(
        name="cnn",
        dataset=dataset,
        loss=partial(train.cross_entropy, apply),
        params=params,
        layers=cnn.scion_layers(),
        learning_rate=0.01,
        batches=lambda num_steps: data.batches(images, size, num_steps, seed=seed),
        validation=(images.validation_images[:count], images.validation_labels[:count]),
    )


def on_text(seed: int) -> Task:
    """A transformer of two blocks and width 64, on Shakespeare by characters."""
    corpus = text.load("shakespeare")
    apply, params = nanogpt.build(GPT, seed=seed)
    size, length = TEXT["batch_size"], TEXT["length"]

    def loss(params: Any, windows: jax.Array) -> jax.Array:
        logits = apply(params, windows[:, :-1])  # (B, T, V)
        targets = windows[:, 1:]  # (B, T)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def batches(num_steps: int) -> Iterator[Any]:
        for step in range(num_steps):
            yield (text.batch(corpus.train, size, length, seed=seed, step=step),)

    return Task(
        name="nanogpt",
        dataset="shakespeare",
        loss=loss,
        params=params,
        layers=nanogpt.layers(GPT),
        learning_rate=1e-3,
        batches=batches,
        validation=(
            text.validation_batch(corpus.validation, TEXT["validation"], length),
        ),
    )


TASKS = {"cnn": on_images, "nanogpt": on_text}


def build_step(task: Task, optimizer: Any) -> Callable[..., Any]:
    """One step of (params, state, learning rate, batch), jitted."""

    @jax.jit
    def step(params, state, rate, *batch):
        grads = jax.grad(task.loss)(params, *batch)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda x, u: x + rate * u, params, updates), state

    return step


class Measured(NamedTuple):
    """Points along one run, row by row the same pairs of steps."""

    steps: list[int]  # k of the pairs Xᵏ⁻¹, Xᵏ
    consecutive: dm.SmoothnessPoints  # on the two batches of the steps, (J, N)
    same: dm.SmoothnessPoints  # on the batch of the first, (J, shares, N)


def measure(
    task: Task, rate: float, num_steps: int, every: int, shares: tuple[float, ...]
) -> Measured:
    """Trains once, and measures a pair of steps out of `every`."""
    steps = list(range(every, num_steps, every))
    capacity = len(steps) + len(steps) % 2
    optimizer = optax.chain(
        dm.track_smoothness(task.layers, capacity=capacity, every=every),
        dm.gluon(1.0, task.layers, MOMENTUM),
    )
    step = build_step(task, optimizer)
    grad, layers = jax.grad(task.loss), task.layers

    @jax.jit
    def one_batch(before, after, *batch):
        return dm.measure_smoothness(grad, layers, before, after, *batch, shares=shares)

    params, state = task.params, optimizer.init(task.params)
    scale, rows = jnp.float32(rate), []
    for k, batch in enumerate(
        tqdm(task.batches(num_steps), total=num_steps, desc="measuring", leave=False),
        start=1,
    ):
        before = params
        params, state = step(params, state, scale, *batch)
        if k in steps:
            rows.append(one_batch(before, params, *batch))
    history = optax.tree.get(state, "history")
    kept = jax.tree.map(lambda x: x[: len(steps)], history.points)
    return Measured(steps, kept, jax.tree.map(lambda *row: jnp.stack(row), *rows))


def sweep(
    task: Task, layers: Any, rates: list[float], num_steps: int, label: str
) -> list[float | None]:
    """Validation loss after the last step at each learning rate; None: not finite."""
    optimizer = dm.gluon(1.0, layers, MOMENTUM)
    step, loss = build_step(task, optimizer), jax.jit(task.loss)
    losses: list[float | None] = []
    for rate in tqdm(rates, desc=label, leave=False):
        params, state = task.params, optimizer.init(task.params)
        for batch in task.batches(num_steps):
            params, state = step(params, state, jnp.float32(rate), *batch)
        end = float(loss(params, *task.validation))
        losses.append(end if np.isfinite(end) else None)
    return losses


def best(losses: list[float | None]) -> int:
    """Where the least loss is.

    Raises:
        ValueError: If none is finite.
    """
    finite = [(loss, i) for i, loss in enumerate(losses) if loss is not None]
    if not finite:
        raise ValueError("`losses` must have a finite one, got none")
    return min(finite)[1]
