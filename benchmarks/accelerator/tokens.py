"""Part 4: tokens a second, MFU and the optimizer's share of a step of GPT-2 124M.

Each optimizer's step takes turns with plain SGD's on one batch of random tokens; its
share is the time beyond SGD's. FLOPs are the network's, by the formula of
`benchmarks.language.costs`, and so are the peaks that MFU is taken of. Blocks are
stacked and scanned over, which compiles sooner. `dtype` is that of the activations,
the weights are float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.accelerator.figures import Figure, Fitted, by_memory
from benchmarks.accelerator.updates import in_bfloat16
from benchmarks.common import timing
from benchmarks.language import costs, methods, steps, train
from benchmarks.language.plan import Plan, Sets
from benchmarks.models import nanogpt, nanogpt_scan

RATE = np.float32(1e-4)
NUM_STAGED = 100  # steps of a run of Drop-Muon, in whose last one the blocks are frozen
BASE = "SGD"


class Sizes(NamedTuple):
    """What to time, and on how many tokens."""

    preset: str
    length: int  # tokens of context
    batch_size: int  # windows; halved while they don't fit
    names: tuple[str, ...]
    others: tuple[str, ...]  # in float32 besides
    num_rounds: int


def sizes_of(scale: str) -> Sizes:
    """For a batch of the device's memory, or a tiny one."""
    names = ("muon", "muon, bfloat16 products", "optax_muon", "adamw", "scion")
    names += ("gluon", "drop_muon_staged", "ef21_muon")
    if scale == "tiny":
        return Sizes("nano", 8, 2, (names[1], names[6]), (), 2)
    batch_size = by_memory({0.0: 1, 14.0: 4, 30.0: 8, 60.0: 16})
    return Sizes("124m", 1024, batch_size, names, names[:1] + names[2:4], 8)


class Base(NamedTuple):
    """SGD's step, compiled, and what all steps read."""

    model: steps.Model
    params: Any
    batch: jax.Array  # (1, B, T + 1)
    program: timing.Program
    call: Callable[[], Any]


def figures(scale: str) -> list[Figure]:
    """In bfloat16 all optimizers, then in float32 a few."""
    sizes, found = sizes_of(scale), []
    for dtype, names in (("bfloat16", sizes.names), ("float32", sizes.others)):
        fitted = Fitted(sizes.batch_size, partial(build, sizes, dtype))
        for name in (BASE, *names) if names else ():
            measure = partial(timed, fitted, sizes, name)
            found.append(Figure(f"{sizes.preset}: {name}", dtype, measure))
    return found


def build(sizes: Sizes, dtype: str, batch_size: int) -> Base:
    """Compiles SGD's step."""
    config = nanogpt.PRESETS[sizes.preset]
    apply, params = nanogpt_scan.build(config, seed=0, dtype=jnp.dtype(dtype))
    model = steps.Model(config, apply, True, train.mesh_of(jax.devices()[:1]))
    shape = (1, batch_size, sizes.length + 1)
    batch = jax.random.randint(jax.random.key(0), shape, 0, config.vocab_size)
    batch = steps.replicate(batch, model.mesh)
    params = steps.replicate(params, model.mesh)
    sgd = steps.plain(lambda model, rate: optax.sgd(rate), model)
    program, call = compiled(sgd, params, batch, None)
    return Base(model, params, batch, program, call)


def compiled(
    method: steps.Method, params: Any, batch: jax.Array, sets: Sets | None
) -> tuple[timing.Program, Callable[[], Any]]:
    """The program of a step, and a call that repeats it."""
    static = {} if sets is None else {"sets": sets}
    state = (params, method.init(params, 0))
    program = timing.compile_program(method.step, *state, RATE, batch, **static)
    return program, timing.repeat_step(program.call, *state, batch=(RATE, batch))


def method_of(name: str, model: steps.Model) -> steps.Method:
    """An optimizer of `benchmarks.language`, or its Muon with products in bfloat16."""
    if name in methods.OPTIMIZERS:
        return methods.OPTIMIZERS[name].build(model)

    def build(model: steps.Model, rate: Any) -> Any:
        return methods.muon(model, rate, in_bfloat16(methods.muon_layers(model)))

    return steps.plain(build, model)


def timed(fitted: Fitted, sizes: Sizes, name: str) -> dict[str, Any]:
    """One optimizer's step, in turns with SGD's."""

    def attempt(base: Base) -> dict[str, Any]:
        program, calls = base.program, {BASE: base.call}
        sets = None
        if name != BASE:
            method = method_of(name, base.model)
            plan = Plan(NUM_STAGED, base.batch.shape[1], sizes.length, float(RATE))
            sets = method.sets_at(plan, NUM_STAGED - 1)
            program, calls[name] = compiled(method, base.params, base.batch, sets)
        active = None if sets is None else sets.active
        times, ratios = timing.time_paired(calls, num_runs=sizes.num_rounds)
        rates = speed(base.model.config, sizes.length, base.batch, times[name], active)
        return {
            "length": sizes.length,
            "num_tokens_per_step": base.batch.shape[1] * sizes.length,
            "num_active": None if active is None else sum(active),
            "step_time_s": times[name]._asdict(),
            "step_time_of_sgd": ratios[name]._asdict(),
            "optimizer_share": 1 - 1 / ratios[name].median,
            **rates,
            "compile_time_s": program.compile_time_s,
            "peak_memory_bytes": program.peak_memory_bytes,
        }

    return fitted.with_base(attempt)


def speed(
    config: nanogpt.Config,
    length: int,
    batch: jax.Array,
    time_s: timing.Quartiles,
    active: Any,
) -> dict[str, float | None]:
    """Tokens a second, FLOP/s of the network, and its share of the device's peak."""
    tokens = batch.shape[1] * length
    rate = tokens * costs.model_flops(config, length, active) / time_s.median
    peak = costs.peak_flops(jax.devices()[0])
    return {
        "tokens_per_second": tokens / time_s.median,
        "flop_rate_per_second": rate,
        "mfu": rate / peak if peak else None,
    }
