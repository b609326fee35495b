"""The train steps that `drop_muon.cost` compares, and the networks that take them.

At cutoff s the layers s, …, b − 1 move. All steps donate what they update:

- full: every layer moves, by `dm.gluon`;
- then zero: the full step, its updates multiplied by 0 where layers are frozen;
- by hand: `jax.value_and_grad` of the suffix alone, over a prefix under
  `stop_gradient`, and `dm.gluon` on the suffix alone;
- ours: `dm.value_and_grad` and `dm.drop_muon`, with a static active set.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike

import dropmuon_optax as dm
from benchmarks.common import train
from benchmarks.models import cnn, nanogpt, resnet

IMAGE_SHAPE = (32, 32, 3)
SEQUENCE_LENGTH = 128  # tokens
RATE = optax.linear_schedule(0.01, 0.0, 1000)  # decays, as in training


class Task(NamedTuple):
    """A network and a batch to take steps on."""

    apply: train.Apply
    params: dict[str, Any]  # layer -> its parameters
    names: list[str]  # of the layers, from the input on
    layers: Callable[[Any], Any]  # parameters -> tree of `Layer`s
    batch: tuple[jax.Array, jax.Array]  # inputs, labels


class Step(NamedTuple):
    """A train step and what to call it with."""

    jitted: Any  # (*state, *batch) -> (*new state, loss)
    state: tuple[Any, Any]  # parameters that move, or all; the optimizer's state
    batch: tuple[Any, ...]
    static: dict[str, Any]


def on_images(model: Any, preset: str, layers: Any, batch_size: int, seed: int) -> Task:
    """A network for images, and a batch of noise."""
    apply, params = model.build(IMAGE_SHAPE, preset, seed=seed)
    keys = jax.random.split(jax.random.key(seed))
    images = jax.random.normal(keys[0], (batch_size, *IMAGE_SHAPE))
    labels = jax.random.randint(keys[1], (batch_size,), 0, 10)
    names = model.LAYER_ORDER
    return Task(apply, nnx.to_pure_dict(params), names, layers, (images, labels))


def on_text(
    preset: str,
    batch_size: int,
    seed: int,
    length: int = SEQUENCE_LENGTH,
    dtype: DTypeLike = jnp.float32,
) -> Task:
    """A language model, and a batch of noise."""
    apply, params = nanogpt.build(preset, seed=seed, dtype=dtype)
    shape = (batch_size, length + 1)
    vocab_size = nanogpt.PRESETS[preset].vocab_size
    text = jax.random.randint(jax.random.key(seed), shape, 0, vocab_size)
    names, layers = nanogpt.layer_order(preset), nanogpt.layers(preset)
    batch = (text[:, :-1], text[:, 1:])
    return Task(apply, nnx.to_pure_dict(params), names, layers, batch)


class Model(NamedTuple):
    """What `--model` names."""

    build: Callable[[int, int], Task]  # (batch size, seed) -> task
    batch_size: int
    num_rounds: int


MODELS = {
    "cnn": Model(partial(on_images, cnn, "paper", cnn.scion_layers()), 64, 20),
    "resnet18": Model(partial(on_images, resnet, "resnet18", resnet.layers()), 8, 6),
    "gpt": Model(partial(on_text, "small"), 8, 10),
    "gpt_nano": Model(partial(on_text, "nano"), 2, 20),
    "gpt_124m": Model(partial(on_text, "124m"), 8, 10),
}


def full(task: Task) -> Step:
    """Every layer moves."""
    optimizer = dm.gluon(RATE, task.layers)
    jitted = train.build_train_step(task.apply, optimizer)
    return Step(jitted, (task.params, optimizer.init(task.params)), task.batch, {})


def then_zero(task: Task, cutoff: int) -> Step:
    """Everything is computed, and what is not to move is multiplied by 0.

    The factors are data, so the program is one and the same for all cutoffs.
    """
    optimizer = dm.gluon(RATE, task.layers)
    moves = {name: float(i >= cutoff) for i, name in enumerate(task.names)}

    @partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, moves, *batch):
        loss_fn = partial(train.cross_entropy, task.apply)
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        updates = jax.tree.map(
            lambda factor, layer: jax.tree.map(lambda u: factor * u, layer),
            moves,
            updates,
        )
        return optax.apply_updates(params, updates), opt_state, loss

    state = (task.params, optimizer.init(task.params))
    return Step(train_step, state, (moves, *task.batch), {})


def by_hand(task: Task, cutoff: int) -> Step:
    """A program of the suffix: nothing of the package but Gluon."""
    frozen = {name: task.params[name] for name in task.names[:cutoff]}
    moving = {name: task.params[name] for name in task.names[cutoff:]}
    tree = task.layers(task.params)
    optimizer = dm.gluon(RATE, lambda part: {name: tree[name] for name in part})

    @partial(jax.jit, donate_argnums=(0, 1))
    def train_step(moving, opt_state, frozen, *batch):
        def loss_fn(moving):
            params = {**jax.lax.stop_gradient(frozen), **moving}
            return train.cross_entropy(task.apply, params, *batch)

        loss, grads = jax.value_and_grad(loss_fn)(moving)
        updates, opt_state = optimizer.update(grads, opt_state, moving)
        return optax.apply_updates(moving, updates), opt_state, loss

    state = (moving, optimizer.init(moving))
    return Step(train_step, state, (frozen, *task.batch), {})


def ours(task: Task, cutoff: int) -> Step:
    """The package's way."""
    sampling, key = dm.samplings.Progressive(), jax.random.key(0)
    optimizer = dm.drop_muon(RATE, task.layers, sampling, key=key)

    @partial(jax.jit, static_argnames="active", donate_argnums=(0, 1))
    def train_step(params, opt_state, *batch, active):
        loss_fn = partial(train.cross_entropy, task.apply)
        gradient = dm.value_and_grad(loss_fn, task.layers)
        loss, grads = gradient(params, *batch, active=active)
        updates, opt_state = optimizer.update(grads, opt_state, params, active=active)
        return optax.apply_updates(params, updates), opt_state, loss

    active = tuple(i >= cutoff for i in range(len(task.names)))
    state = (task.params, optimizer.init(task.params))
    return Step(train_step, state, task.batch, {"active": active})


def cutoffs_of(task: Task, every: int) -> list[int]:
    """Every so many cutoffs from the input on, and the last."""
    last = len(task.names) - 1
    return sorted({*range(0, last, every), last})


def steps(task: Task, every: int = 1) -> dict[str, Step]:
    """All of them, in the order in which they take turns."""
    cutoffs = cutoffs_of(task, every)
    pairs = {
        f"{make.__name__}_{cutoff}": make(task, cutoff)
        for cutoff in cutoffs
        for make in (by_hand, ours)
    }
    return {"full": full(task), "then_zero": then_zero(task, cutoffs[-1]), **pairs}
