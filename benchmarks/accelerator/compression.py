"""Part 5: what compression costs, by `benchmarks.ef21_muon`'s own measurements.

Single matrices of GPT-2 124M, in turns with Newton–Schulz; steps of a small GPT with a
few simulated workers (one device does all that they do), and of GPT-2 124M with one
worker, where the memory is there, against the same steps without compression.
"""

import argparse
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.figures import Figure, Fitted, by_memory
from benchmarks.common import text, timing
from benchmarks.ef21_muon import cost, losses

PAIRS = ["top10_natural/same", "natural/same", "rank10_natural/natural"]
BASE = "identity/dense"
EMBEDDING = (50304, 768)
NUM_TOKENS = 100_000  # of the random text
DTYPE = "float32"


def figures(scale: str) -> list[Figure]:
    """Matrices, simulated workers, one worker; last the embedding, the slowest."""
    shapes = [*cost.SHAPES, EMBEDDING] if scale == "full" else [(16, 32)]
    pairs = PAIRS if scale == "full" else PAIRS[:1]
    matrices = [
        Figure(f"matrix {m} × {n}", DTYPE, partial(cost.matrix, (m, n), options(scale)))
        for m, n in shapes
    ]
    found, last = matrices[:2], matrices[2:]
    plan, vocab_size = plan_of(scale)
    fitted = Fitted(plan.batch_size, partial(Simulated, plan, vocab_size))
    for name in pairs:
        label = f"{plan.num_workers} simulated workers: {name}"
        measure = partial(simulated, fitted, name, options(scale).rounds)
        found.append(Figure(label, DTYPE, measure))
    settings = options(scale)
    found.append(Figure(f"step of {settings.preset}", DTYPE, partial(step, settings)))
    return found + last


def options(scale: str) -> argparse.Namespace:
    """What `ef21_muon cost` reads from its command line."""
    if scale == "tiny":
        tiny = {"preset": "nano", "batch_size": 2, "length": 8, "rounds": 2}
        return argparse.Namespace(pairs=PAIRS[:1], seed=0, **tiny)
    # Each pair's parameters and state are 3 GB at 124M, beside the step's temporaries.
    preset, batch_size = by_memory({0.0: ("small", 16), 30.0: ("124m", 8)})
    return argparse.Namespace(
        pairs=PAIRS,
        preset=preset,
        batch_size=batch_size,
        length=512,
        rounds=8,
        seed=0,
    )


def plan_of(scale: str) -> tuple[losses.Plan, int]:
    """The simulated workers' GPT, and its vocabulary."""
    if scale == "tiny":
        return losses.Plan(1, 16, 2, 8, batch_size=1, num_workers=2), 32
    return losses.Plan(6, 256, 4, 256, batch_size=8, num_workers=4), 1024


def step(settings: argparse.Namespace) -> dict[str, Any]:
    """One worker's step with each pair of compressors."""

    def build(batch_size: int) -> argparse.Namespace:
        return argparse.Namespace(**{**vars(settings), "batch_size": batch_size})

    measured = Fitted(settings.batch_size, build).with_base(cost.step)
    return {"preset": settings.preset, "length": settings.length, **measured}


class Simulated:
    """The uncompressed step of simulated workers; `call` takes it again."""

    def __init__(self, plan: losses.Plan, vocab_size: int, batch_size: int):
        """Compiles it."""
        self.plan = plan._replace(batch_size=batch_size)
        rng = np.random.default_rng(0)
        parts = [
            (rng.integers(0, vocab_size, NUM_TOKENS, np.uint16),) for _ in range(2)
        ]
        refuse: Any = None  # nothing is read or written in words
        self.corpus = text.Corpus(
            "random", "char", vocab_size, *parts, encode=refuse, decode=refuse
        )
        self.call = self.repeated(BASE)[1]

    def repeated(self, name: str) -> tuple[timing.Program, Any]:
        """The step of a pair of compressors, compiled, and a call that repeats it."""
        task = losses.build(self.plan, name, self.corpus)
        state = task.first(0)
        windows = jnp.asarray(losses.batch(self.plan, self.corpus, 0, 0), jnp.int32)
        batch = (jnp.float32(5e-4), jnp.float32(0.7), windows)
        program = timing.compile_program(task.step, *state, *batch, active=None)
        return program, timing.repeat_step(program.call, *state, batch=batch)


def simulated(fitted: Fitted, name: str, num_rounds: int) -> dict[str, Any]:
    """All workers' step with a pair of compressors, in turns with none."""

    def attempt(base: Simulated) -> dict[str, Any]:
        program, call = base.repeated(name)
        calls = {BASE: base.call, name: call}
        times, ratios = timing.time_paired(calls, num_runs=num_rounds)
        plan = base.plan
        return {
            "num_workers": plan.num_workers,
            "num_tokens_per_step": plan.num_workers * plan.batch_size * plan.length,
            "time_s": {key: own._asdict() for key, own in times.items()},
            "of_uncompressed": {key: own._asdict() for key, own in ratios.items()},
            "share_of_step": {key: 1 - 1 / own.median for key, own in ratios.items()},
            "compile_time_s": program.compile_time_s,
        }

    return fitted.with_base(attempt)
