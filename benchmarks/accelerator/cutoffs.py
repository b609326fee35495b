"""Part 2: what a step of Drop-Muon costs, by cutoff, on a batch of noise.

Each step takes turns with the full one; the CNN's with one cut by hand besides. From
the output on: the first figures tell most. `dtype` is that of the activations.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks.accelerator.figures import Figure, Fitted, by_memory
from benchmarks.cnn import step_time
from benchmarks.common import timing
from benchmarks.drop_muon import steps
from benchmarks.models import cnn

NUM_ROUNDS = {"full": 15, "tiny": 2}


class Case(NamedTuple):
    """A network, and the layers to cut it at."""

    name: str
    dtype: str
    build: Callable[[int], steps.Task]  # batch size -> task
    batch_size: int
    layers: list[str]
    by_hand: bool


class Base(NamedTuple):
    """The full step, compiled."""

    task: steps.Task
    program: timing.Program
    call: Callable[[], Any]


def cases(scale: str) -> list[Case]:
    """The paper's CNN at its batch, and GPT-2 124M at one that fits."""
    if scale == "tiny":
        sizes, batches, length = ("small", "nano"), (8, 2), 8
        order, blocks = ["head", "conv2"], ["block_1"]
    else:
        sizes, length = ("paper", "124m"), 1024
        batches = (8192, by_memory({0.0: 1, 14.0: 2, 30.0: 8, 60.0: 16}))
        order, blocks = cnn.LAYER_ORDER[::-1], ["block_11", "block_6", "embed"]
    images = partial(steps.on_images, cnn, sizes[0], cnn.scion_layers(), seed=0)
    text = partial(steps.on_text, sizes[1], seed=0, length=length, dtype="bfloat16")
    return [
        Case(f"CNN {sizes[0]}", "float32", images, batches[0], order, True),
        Case(f"GPT {sizes[1]}", "bfloat16", text, batches[1], blocks, False),
    ]


def figures(scale: str) -> list[Figure]:
    """Full steps, and those from each layer on."""
    found = []
    for case in cases(scale):
        fitted = Fitted(case.batch_size, partial(full, case))
        found.append(
            Figure(f"{case.name}: full", case.dtype, partial(alone, fitted, scale))
        )
        for layer in case.layers:
            measure = partial(cut, fitted, case, layer, NUM_ROUNDS[scale])
            found.append(Figure(f"{case.name}: from {layer}", case.dtype, measure))
    return found


def full(case: Case, batch_size: int) -> Base:
    """Compiles the step in which every layer moves."""
    task = case.build(batch_size)
    return Base(task, *compiled(steps.full(task)))


def compiled(step: steps.Step) -> tuple[timing.Program, Callable[[], Any]]:
    """The program of a step, and a call that repeats it."""
    program = timing.compile_program(
        step.jitted, *step.state, *step.batch, **step.static
    )
    return program, timing.repeat_step(program.call, *step.state, batch=step.batch)


def alone(fitted: Fitted, scale: str) -> dict[str, Any]:
    """The full step."""

    def attempt(base: Base) -> dict[str, Any]:
        calls = {"full": base.call}
        times, ratios = timing.time_paired(calls, num_runs=NUM_ROUNDS[scale])
        shape = base.task.batch[0].shape
        return {
            "input_shape": list(shape),
            **step_time.measurements(times["full"], ratios["full"], base.program),
        }

    return fitted.with_base(attempt)


def cut(fitted: Fitted, case: Case, layer: str, num_rounds: int) -> dict[str, Any]:
    """The step from a layer on, in turns with the full one and one cut by hand."""

    def attempt(base: Base) -> dict[str, Any]:
        cutoff = base.task.names.index(layer)
        program, call = compiled(steps.ours(base.task, cutoff))
        calls = {"full": base.call, "ours": call}
        times, ratios = timing.time_paired(calls, num_runs=num_rounds)
        found = {
            "num_active": len(base.task.names) - cutoff,
            "full_step_time_s": times["full"]._asdict(),
            **step_time.measurements(times["ours"], ratios["ours"], program),
        }
        if case.by_hand:
            hand, other = compiled(steps.by_hand(base.task, cutoff))
            calls = {"by_hand": other, "ours": call}
            times, ratios = timing.time_paired(calls, num_runs=num_rounds)
            found["by_hand_step_time_s"] = times["by_hand"]._asdict()
            found["step_time_of_by_hand"] = ratios["ours"]._asdict()
            found["by_hand_compile_time_s"] = hand.compile_time_s
        return found

    return fitted.with_base(attempt)
