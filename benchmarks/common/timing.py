"""The only place where benchmarks compile, and time single calls of, a program.

A time is taken after `block_until_ready`, so that it is of the work and not of its
dispatch; after warm-up; in medians and quartiles; compile time apart. Programs are
compared by interleaved runs A B A B in one process and by the ratio inside each pair,
so that a slow spell of the machine hits both.
"""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np


class Quartiles(NamedTuple):
    """Median and quartiles of `num_runs` measurements, in their unit."""

    median: float
    first: float
    third: float
    num_runs: int


class Program(NamedTuple):
    """A compiled function, and what its compiler says of it."""

    call: Callable[..., Any]  # the dynamic arguments only
    compile_time_s: float  # tracing, lowering and compiling
    peak_memory_bytes: int  # arguments, outputs and temporaries; aliased bytes once
    num_flops: float | None  # of one call; None where the backend does not say


def quartiles(measurements: list[float]) -> Quartiles:
    """Summarizes measurements.

    Examples:
        >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
        Quartiles(median=3.0, first=2.0, third=4.0, num_runs=5)
    """
    first, median, third = np.percentile(measurements, [25, 50, 75])
    return Quartiles(float(median), float(first), float(third), len(measurements))


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Returns what `call()` returns, and the seconds until all of it was computed."""
    start = perf_counter()
    result = jax.block_until_ready(call())
    return result, perf_counter() - start


def compile_program(jitted: Any, *args: Any, **kwargs: Any) -> Program:
    """Compiles a jitted function for these arguments, apart from any run.

    Args:
        jitted: What `jax.jit` returned.
        *args: Arguments, as in a call.
        **kwargs: Static arguments belong here; `call` is then called without them.
    """
    start = perf_counter()
    compiled = jitted.lower(*args, **kwargs).compile()
    compile_time_s = perf_counter() - start
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    return Program(
        call=compiled,
        compile_time_s=compile_time_s,
        peak_memory_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
        num_flops=cost.get("flops"),
    )


def time_call(
    call: Callable[[], Any], *, num_runs: int = 20, num_warmup: int = 3
) -> Quartiles:
    """Times one function without arguments, in seconds."""
    times, _ = time_paired({"call": call}, num_runs=num_runs, num_warmup=num_warmup)
    return times["call"]


def time_paired(
    calls: Mapping[str, Callable[[], Any]], *, num_runs: int = 20, num_warmup: int = 3
) -> tuple[dict[str, Quartiles], dict[str, Quartiles]]:
    """Times functions without arguments against the first of them.

    Args:
        calls: Name -> function; each round runs all of them, in this order.
        num_runs: Timed rounds.
        num_warmup: Rounds before them, not counted.

    Returns:
        Seconds by name, and by name the time divided by the first function's time in
        the same round.
    """
    if num_runs < 1:
        raise ValueError(f"`num_runs` must be at least 1, got {num_runs}")
    for _ in range(num_warmup):
        for call in calls.values():
            jax.block_until_ready(call())
    times = {name: [] for name in calls}
    for _ in range(num_runs):
        for name, call in calls.items():
            times[name].append(timed(call)[1])
    base = times[next(iter(calls))]
    ratios = {
        name: [a / b for a, b in zip(own, base, strict=True)]
        for name, own in times.items()
    }
    return (
        {name: quartiles(own) for name, own in times.items()},
        {name: quartiles(own) for name, own in ratios.items()},
    )


def repeat_step(
    step: Callable[..., Any], *state: Any, batch: tuple
) -> Callable[[], Any]:
    """Makes a train step a function without arguments that `time_paired` can repeat.

    Args:
        step: (*state, *batch) -> (*new state, loss); it may donate its state.
        *state: Where to start; copied, so that donation does not eat the caller's.
        batch: The same for every run.
    """
    carried = list(copied(state))

    def call():
        *carried[:], loss = step(*carried, *batch)
        return carried, loss

    return call


def copied(tree: Any) -> Any:
    """A copy of a tree of arrays in fresh buffers, safe to donate."""
    return jax.tree.map(lambda leaf: leaf.copy(), tree)
