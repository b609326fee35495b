"""The training loop of language models, over all devices of all hosts.

The clock runs while batches are drawn and train steps run. It stands still while
programs compile, while a warm-up step runs on copies, during evaluation and while
checkpoints are written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Int
from tqdm import tqdm

from benchmarks.common import text, timing
from benchmarks.common.train import mean_loss, stretches
from benchmarks.language import costs
from benchmarks.language.checkpoints import Store
from benchmarks.language.plan import Plan, Sets, flops_of_steps
from benchmarks.language.steps import AXIS, Method, Model, build_loss, replicate


class Point(NamedTuple):
    """What an evaluation saw."""

    step: int
    num_tokens: int  # trained on
    train_time_s: float  # compilation, evaluation and checkpoints not counted
    num_flops: float  # by the formulas of `costs`
    train_loss: float | None  # mean over the steps since the last point
    validation_loss: float | None  # None: not finite


@dataclass
class Task:
    """What runs have in common: the network, its programs, where they run."""

    model: Model
    corpus: text.Corpus
    draw: Callable[[int], Any]  # seed -> initial weights
    evaluate: Callable[[Any, Plan], float | None] = field(init=False)
    programs: dict[tuple[Any, ...], timing.Program] = field(default_factory=dict)

    def __post_init__(self):
        """Makes the evaluation, one program for all runs."""
        loss = jax.jit(build_loss(self.model))

        def evaluate(params: Any, plan: Plan) -> float | None:
            size, hosts = plan.part_size, jax.process_count()
            rows = -(-plan.num_validation // size) * size
            chosen = text.validation_batch(self.corpus.validation, rows, plan.length)
            chosen = np.resize(chosen, (rows, plan.length + 1))  # repeats if too few
            parts = chosen.reshape(-1, hosts, size // hosts, plan.length + 1)
            mine = parts[:, jax.process_index()]
            return mean_loss([loss(params, self.place(part)) for part in mine])

        self.evaluate = evaluate

    def place(self, windows: Int[np.ndarray, "... T+1"]) -> jax.Array:
        """This host's windows as part of a global array, spread over the devices."""
        spec = PartitionSpec(*[None] * (windows.ndim - 2), AXIS, None)
        return jax.make_array_from_process_local_data(
            NamedSharding(self.model.mesh, spec), windows
        )


def mesh_of(devices: list[Any]) -> jax.sharding.Mesh:
    """Devices along one axis, that of the data."""
    auto = (AxisType.Auto,)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=auto, devices=devices)


def batch_of(task: Task, plan: Plan, step: int) -> jax.Array:
    """The windows of a step, (parts, windows of a part, length + 1)."""
    rows = text.batch(
        task.corpus.train,
        plan.batch_size,
        plan.length,
        seed=plan.seed,
        step=step,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
    )
    return task.place(rows.reshape(plan.num_accumulation, -1, plan.length + 1))


def prepare(
    task: Task, name: str, method: Method, plan: Plan, sets: Sets | None, state: Any
) -> timing.Program:
    """The compiled step for these sets of layers; compiled and warmed up if new."""
    key = (name, sets, plan.batch_size, plan.length, plan.num_accumulation)
    if key not in task.programs:
        static = {} if sets is None else {"sets": sets}
        arguments = (*timing.copied(state), plan.rate_at(0.0), batch_of(task, plan, 0))
        program = timing.compile_program(method.step, *arguments, **static)
        jax.block_until_ready(program.call(*arguments))
        task.programs[key] = program
    return task.programs[key]


class Run:
    """A run that goes on from evaluation to evaluation, so that runs can take turns."""

    def __init__(
        self,
        task: Task,
        name: str,
        method: Method,
        plan: Plan,
        store: Store | None = None,
    ):
        """Starts at the first weights, or goes on from the newest checkpoint."""
        plan.check(task.model.mesh.size)
        self.task, self.name, self.method = task, name, method
        self.plan, self.store = plan, store
        self.history: list[Point] = []
        self.step_times_s: list[float] = []
        self.model_flops, self.trained_tokens = 0.0, 0  # by this process
        self.num_restored = 0  # points of the history that a checkpoint had
        self.flops = flops_of_steps(task.model.config, name, plan, method.sets_at)
        self.spent = np.cumsum(self.flops.sum(axis=1))  # after each step
        params = method.start(task.draw(plan.seed), plan)
        state = method.init(params, plan.seed)
        self.state = (replicate(params, task.model.mesh), state)
        found = store.restore(self.state) if store else None
        if found:
            self.state, history = found
            self.history = [Point(**point) for point in history]
            self.num_restored = len(history)

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.history[-1].step if self.history else 0

    @property
    def evaluated(self) -> Any:
        """The weights to evaluate."""
        return self.method.evaluated(*self.state)

    def advance(self, bar: tqdm | None = None) -> Iterator[Point]:
        """Trains to the end; yields after each evaluation."""
        if not self.history:
            yield self.look(Point(0, 0, 0.0, 0.0, None, None))
        plan, begun = self.plan, self.step
        for start, stop in stretches(plan.num_steps, plan.num_evaluations):
            if start >= begun:
                yield self.stretch(start, stop, bar)

    def rate_at(self, step: int) -> np.float32:
        """The learning rate of a step."""
        before = self.spent[step - 1] / self.spent[-1] if step else 0.0
        return self.plan.rate_at(before)

    def compile_all(self) -> None:
        """Compiles the programs of all steps, which `advance` would do on the way."""
        plan, method = self.plan, self.method
        sets = (method.sets_at(plan, step) for step in range(plan.num_steps))
        for some in dict.fromkeys(sets):
            prepare(self.task, self.name, method, plan, some, self.state)

    def stretch(self, start: int, stop: int, bar: tqdm | None) -> Point:
        """Takes steps `start`, …, `stop` − 1, and evaluates."""
        task, plan, method = self.task, self.plan, self.method
        sets = [method.sets_at(plan, step) for step in range(start, stop)]
        programs = {
            some: prepare(task, self.name, method, plan, some, self.state)
            for some in dict.fromkeys(sets)
        }
        losses, clock = [], perf_counter()
        for step, some in zip(range(start, stop), sets, strict=True):
            *state, loss = programs[some].call(
                *self.state, self.rate_at(step), batch_of(task, plan, step)
            )
            self.state = tuple(state)
            losses.append(loss)
            if bar is not None:
                bar.update(plan.batch_size * plan.length)
        jax.block_until_ready((self.state, losses))
        time_s = perf_counter() - clock
        self.step_times_s.append(time_s / (stop - start))
        flops = self.flops[start:stop]
        self.model_flops += float(flops[:, 0].sum())
        self.trained_tokens += (stop - start) * plan.batch_size * plan.length
        last = self.history[-1]
        point = Point(
            step=stop,
            num_tokens=stop * plan.batch_size * plan.length,
            train_time_s=last.train_time_s + time_s,
            num_flops=last.num_flops + float(flops.sum()),
            train_loss=mean_loss(losses),
            validation_loss=None,
        )
        return self.look(point)

    def look(self, point: Point) -> Point:
        """Evaluates, notes the point, and writes a checkpoint."""
        point = point._replace(
            validation_loss=self.task.evaluate(self.evaluated, self.plan)
        )
        self.history.append(point)
        if self.store:
            notes = [point._asdict() for point in self.history]
            self.store.save(point.step, self.state, notes)
        return point

    @property
    def time_s(self) -> float:
        """Training time of this process."""
        begun = self.history[self.num_restored - 1] if self.num_restored else None
        return self.history[-1].train_time_s - (begun.train_time_s if begun else 0.0)

    @property
    def tokens_per_second(self) -> float | None:
        """Trained on by this process."""
        return self.trained_tokens / self.time_s if self.time_s else None

    @property
    def flop_rate(self) -> float | None:
        """FLOP/s of the network on all devices, the optimizer's not counted."""
        return self.model_flops / self.time_s if self.time_s else None

    @property
    def utilization(self) -> float | None:
        """MFU: `flop_rate` over the devices' peak; None where that is not known."""
        mesh, rate = self.task.model.mesh, self.flop_rate
        peak = costs.peak_flops(mesh.devices.flat[0])
        return rate / (peak * mesh.size) if peak and rate else None


def measurements(run: Run) -> dict[str, Any]:
    """The keys, with units, under which a run is recorded."""
    end, plan = run.history[-1], run.plan
    programs = [p for key, p in run.task.programs.items() if key[0] == run.name]
    step_time_s = timing.quartiles(run.step_times_s) if run.step_times_s else None
    return {
        "num_parameters": sum(x.size for x in jax.tree.leaves(run.state[0])),
        "num_devices": run.task.model.mesh.size,
        **plan._asdict(),
        "last_step": end.step,
        "num_tokens": end.num_tokens,
        "num_flops": end.num_flops,
        "train_time_s": end.train_time_s,
        "final_train_loss": end.train_loss,
        "final_validation_loss": end.validation_loss,
        "step_time_s": step_time_s._asdict() if step_time_s else None,
        "tokens_per_second": run.tokens_per_second,
        "flop_rate_per_second": run.flop_rate,
        "mfu": run.utilization,
        "compile_time_s": sum(program.compile_time_s for program in programs),
        "num_programs": len(programs),
        "peak_memory_bytes": max((p.peak_memory_bytes for p in programs), default=None),
        "num_restored_points": run.num_restored,
        "radii": run.method.radii,
        "history": [point._asdict() for point in run.history],
    }
