"""The training loop that every benchmark of accuracy against time goes through.

The clock runs while batches are drawn and train steps run. It stands still while
programs compile, while a warm-up step runs on copies, and during evaluation.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from benchmarks.common import data, timing

EVALUATION_BATCH = 1000  # images; bounds the memory of an evaluation
TRAIN_ACCURACY_IMAGES = 5_000  # training images that the train accuracy is read on

Apply = Callable[[Any, Array], Array]  # (params, images) -> logits


class Schedule(NamedTuple):
    """How long to train, in which order, and how often to look."""

    batch_size: int
    num_epochs: int
    seed: int  # of the order of batches
    num_evaluations: int = 20  # evenly spaced; one more before the first step


class Point(NamedTuple):
    """What an evaluation saw."""

    step: int
    epoch: float  # images seen, over training images
    train_time_s: float  # compilation and evaluation not counted
    train_accuracy: float  # on the first TRAIN_ACCURACY_IMAGES training images
    validation_accuracy: float
    loss: float | None  # mean over the steps since the last point; None: not finite


class Run(NamedTuple):
    """What training cost and what it reached."""

    history: list[Point]
    step_time_s: timing.Quartiles  # over stretches between evaluations, per step
    compile_time_s: float  # of all train-step programs
    num_programs: int
    peak_memory_bytes: int  # of the largest program
    num_flops: float | None  # of the costliest program, per step


def linear_decay(
    dataset: data.Dataset, schedule: Schedule, learning_rate: float
) -> optax.Schedule:
    """From `learning_rate` at step 0, without warm-up, linearly to 0 after the last."""
    return optax.linear_schedule(learning_rate, 0.0, num_steps(dataset, schedule))


def num_steps(dataset: data.Dataset, schedule: Schedule) -> int:
    """Train steps in all epochs."""
    per_epoch = data.steps_per_epoch(len(dataset.train_labels), schedule.batch_size)
    return schedule.num_epochs * per_epoch


def cross_entropy(
    apply: Apply, params: Any, images: Float[Array, "B H W C"], labels: Int[Array, " B"]
) -> Float[Array, ""]:
    """Mean cross-entropy of a batch, in nats."""
    logits = apply(params, images)  # (B, K)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def build_train_step(apply: Apply, optimizer: optax.GradientTransformation):
    """One step of plain training, (params, opt_state) donated.

    Returns:
        (params, opt_state, images, labels) -> (params, opt_state, loss), jitted.
    """

    @partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, images, labels):
        loss_fn = partial(cross_entropy, apply)
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return train_step


def build_accuracy(apply: Apply) -> Callable[..., float]:
    """A function (params, images, labels) -> share of images classified rightly."""

    @jax.jit
    def num_correct(params, images, labels):
        return jnp.sum(apply(params, images).argmax(axis=-1) == labels)

    def accuracy(params: Any, images: np.ndarray, labels: np.ndarray) -> float:
        correct = 0
        for start in range(0, len(labels), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            correct += int(num_correct(params, images[part], labels[part]))
        return correct / len(labels)

    return accuracy


def train(
    train_step: Any,
    accuracy: Callable[..., float],
    params: Any,
    opt_state: Any,
    dataset: data.Dataset,
    schedule: Schedule,
    *,
    active_at: Callable[[int], Hashable] = lambda step: None,
    label: str = "",
) -> Run:
    """Trains, and evaluates at fixed steps outside the clock.

    Args:
        train_step: Jitted (params, opt_state, images, labels) -> (params, opt_state,
            loss). It may donate the first two: the caller's stay whole.
        accuracy: What `build_accuracy` returned.
        params: Initial parameters.
        opt_state: The optimizer's initial state.
        dataset: What to train and to evaluate on.
        schedule: How long and how often.
        active_at: step -> the static argument `active` of the train step, or None to
            leave it out. One program is compiled for each distinct value.
        label: Stands in front of the progress bar.
    """
    params, opt_state = timing.copied((params, opt_state))
    last = num_steps(dataset, schedule)
    feed = data.batches(dataset, schedule.batch_size, last, seed=schedule.seed)
    programs: dict[Hashable, timing.Program] = {}
    history = [evaluate(accuracy, params, dataset)]
    train_time_s, step_times_s = 0.0, []
    with tqdm(
        total=last * schedule.batch_size, unit=" images", unit_scale=True, desc=label
    ) as bar:
        for start, stop in stretches(last, schedule.num_evaluations):
            for active in map(active_at, range(start, stop)):
                if active not in programs:
                    programs[active] = prepare(
                        train_step, params, opt_state, dataset, schedule, active
                    )
            clock = perf_counter()
            losses = []
            for step in range(start, stop):
                call = programs[active_at(step)].call
                params, opt_state, loss = call(params, opt_state, *next(feed))
                losses.append(loss)
                bar.update(schedule.batch_size)
            jax.block_until_ready((params, opt_state, losses))
            stretch_s = perf_counter() - clock
            train_time_s += stretch_s
            step_times_s.append(stretch_s / (stop - start))
            seen = evaluate(accuracy, params, dataset)._replace(
                step=stop,
                epoch=stop * schedule.batch_size / len(dataset.train_labels),
                train_time_s=train_time_s,
                loss=mean_loss(losses),
            )
            history.append(seen)
            bar.set_postfix(loss=seen.loss, accuracy=seen.validation_accuracy)
    return summarize(history, step_times_s, programs)


def stretches(last: int, count: int) -> Iterator[tuple[int, int]]:
    """Splits steps 0 … `last` − 1 into at most `count` stretches of equal length.

    Examples:
        >>> list(stretches(10, 3))
        [(0, 3), (3, 7), (7, 10)]
    """
    bounds = sorted({round(i * last / count) for i in range(count + 1)})
    return pairwise(bounds)


def prepare(
    train_step: Any,
    params: Any,
    opt_state: Any,
    dataset: data.Dataset,
    schedule: Schedule,
    active: Hashable,
) -> timing.Program:
    """Compiles a train step and runs it once, on copies; neither is on the clock."""
    images = np.zeros_like(dataset.train_images[: schedule.batch_size])
    labels = np.zeros_like(dataset.train_labels[: schedule.batch_size])
    static = {} if active is None else {"active": active}
    arguments = (*timing.copied((params, opt_state)), images, labels)
    program = timing.compile_program(train_step, *arguments, **static)
    jax.block_until_ready(program.call(*arguments))
    return program


def evaluate(
    accuracy: Callable[..., float], params: Any, dataset: data.Dataset
) -> Point:
    """Reads both accuracies; step, time and loss are the caller's to fill in."""
    part = slice(TRAIN_ACCURACY_IMAGES)
    return Point(
        step=0,
        epoch=0.0,
        train_time_s=0.0,
        train_accuracy=accuracy(
            params, dataset.train_images[part], dataset.train_labels[part]
        ),
        validation_accuracy=accuracy(
            params, dataset.validation_images, dataset.validation_labels
        ),
        loss=None,
    )


def mean_loss(losses: list[jax.Array]) -> float | None:
    """The mean as a Python number; None where it is not finite."""
    mean = float(np.mean(jax.device_get(losses)))
    return mean if math.isfinite(mean) else None


def summarize(
    history: list[Point],
    step_times_s: list[float],
    programs: dict[Hashable, timing.Program],
) -> Run:
    """Gathers what a run measured."""
    all_flops = [program.num_flops for program in programs.values()]
    return Run(
        history=history,
        step_time_s=timing.quartiles(step_times_s),
        compile_time_s=sum(program.compile_time_s for program in programs.values()),
        num_programs=len(programs),
        peak_memory_bytes=max(p.peak_memory_bytes for p in programs.values()),
        num_flops=max((f for f in all_flops if f is not None), default=None),
    )


def first_at(history: list[Point], target: float) -> Point | None:
    """The first evaluation whose validation accuracy is at least `target`, if any."""
    return next((p for p in history if p.validation_accuracy >= target), None)


def measurements(run: Run, target: float) -> dict[str, float | int | None]:
    """The keys, with units, under which every benchmark records a run."""
    end = run.history[-1]
    reached = first_at(run.history, target)
    return {
        "num_steps": end.step,
        "time_to_target_s": reached.train_time_s if reached else None,
        "num_steps_to_target": reached.step if reached else None,
        "final_train_accuracy": end.train_accuracy,
        "final_validation_accuracy": end.validation_accuracy,
        "final_loss": end.loss,
        "train_time_s": end.train_time_s,
        "step_time_s": run.step_time_s.median,
        "step_time_first_quartile_s": run.step_time_s.first,
        "step_time_third_quartile_s": run.step_time_s.third,
        "compile_time_s": run.compile_time_s,
        "num_programs": run.num_programs,
        "peak_memory_bytes": run.peak_memory_bytes,
        "num_flops_per_step": run.num_flops,
    }
