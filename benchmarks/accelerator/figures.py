"""What a part of the command is made of: figures, one line each.

A figure names itself before it is measured, so that one that fails, or for which no
time is left, can be said by name.
"""

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

SCALES = ("full", "tiny")  # tiny: for a CPU, to see that all of it works
GIGABYTE = 1e9  # bytes


class Figure(NamedTuple):
    """One line to be.

    Attributes:
        name: Of what is measured, unique in its part.
        dtype: Of weights or activations, as the part's docstring says.
        measure: () -> what was measured, with units in the keys.
    """

    name: str
    dtype: str
    measure: Callable[[], dict[str, Any]]


class UnmeasuredError(Exception):
    """A figure can't be had here: its line says why, and it is no failure."""


class Fitted:
    """A base that others are compared with, on a batch that fits into the memory.

    Attributes:
        batch_size: The largest tried that fits, so far.
        num_halvings: How often it was halved.
    """

    def __init__(self, batch_size: int, build: Callable[[int], Any]):
        """Builds nothing yet; `build` is batch size -> base."""
        self.batch_size, self.build = batch_size, build
        self.num_halvings, self.base = 0, None

    def with_base(self, attempt: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """`attempt(base)`; while memory is exhausted the batch is halved.

        The base is built once for each batch size.
        """
        while True:
            try:
                if self.base is None:
                    self.base = self.build(self.batch_size)
                measured = attempt(self.base)
                break
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
            self.base = None  # after the handler, so that its frames are gone too
            gc.collect()
            self.batch_size //= 2
            self.num_halvings += 1
        return {
            "batch_size": self.batch_size,
            "num_halvings_of_batch": self.num_halvings,
            **measured,
        }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or its compiler, found too little memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def memory_bytes() -> int | None:
    """What the first device may allocate; None where it doesn't say (any CPU)."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit")


def by_memory(choices: dict[float, Any]) -> Any:
    """The choice of the largest memory, in gigabytes, that the device has.

    Where it doesn't say what it has, the choice of the least.

    Examples:
        >>> by_memory({0.0: 2, 1e9: 16})
        2
    """
    have = (memory_bytes() or 0) / GIGABYTE
    return choices[max((least for least in choices if least <= have), default=0.0)]
