"""Stacks, one matrix at a time: for what LAPACK computes."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from dropmuon_optax.meshes import gathered, rows_like


def one_by_one(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function of one matrix that `jax.vmap` calls for one matrix after the other.

    `jax.custom_batching.sequential_vmap`, but for stacks on Explicit axes, too: a loop
    can't run over a sharded axis, so the stack is gathered and its results spread.

    Examples:
      >>> jax.vmap(one_by_one(lambda x: 2 * x))(jax.numpy.ones(2))
      Array([2., 2.], dtype=float32)
    """
    single = jax.custom_batching.custom_vmap(f)

    @single.def_vmap
    def stacked(size: int, batched: Any, x: Array) -> tuple[Array, bool]:
        del size, batched
        return rows_like(jax.lax.map(single, gathered(x)), x), True

    return single
