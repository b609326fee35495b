"""What a step of the trained models sends, by pair and by set of layers."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from benchmarks.ef21_muon.losses import AXIS, SAMPLINGS, Plan, program
from benchmarks.models import nanogpt
from dropmuon_optax.counters.bytes import count_traced_bytes

ALIKE = ("num_blocks", "width", "num_heads", "num_workers", "sampling")
VOCABULARY = 65  # characters of Shakespeare


def measure(plan: Plan, name: str) -> dict[str, Any]:
    """Counts the steps of a pair; returns what the record says of them.

    `bytes_from` and the two after it have an entry for each lowest layer that moves, or
    one alone if all of them do.
    """
    config = nanogpt.Config(
        plan.num_blocks, plan.num_heads, plan.width, VOCABULARY, tied=False
    )
    params = jax.eval_shape(lambda: nanogpt.build(config, seed=0)[1])
    num_layers = len(nanogpt.layer_order(config))
    sets = [
        (False,) * first + (True,) * (num_layers - first) for first in range(num_layers)
    ]
    if SAMPLINGS[plan.sampling](num_layers) is None:
        sets = sets[:1]
    mesh = AbstractMesh((plan.num_workers,), (AXIS,))
    # The loss is no part of what is sent: any function of all parameters will do.
    init, step = program(plan, name, config, _sum_of_squares, mesh)
    state = jax.eval_shape(lambda p: init(p, 0), params)
    windows = jax.ShapeDtypeStruct((plan.num_workers, 1), jnp.int32)
    counts = []
    for active in sets:
        traced = functools.partial(step, active=active)
        sent = count_traced_bytes(
            traced, params, state, jnp.float32(0), jnp.float32(0), windows
        )
        counts.append(sent.by_kind)
    return {
        **{name: getattr(plan, name) for name in ALIKE},
        "num_parameters_from": [_num_parameters(config, params, s) for s in sets],
        "to_server_from": [found["all-to-all"] for found in counts],
        "bytes_from": [found["all-to-all"] + found["all-gather"] for found in counts],
    }


def _sum_of_squares(params: Any, windows: Any) -> Any:
    del windows
    return sum(jnp.sum(x * x) for x in jax.tree.leaves(params))


def _num_parameters(config: nanogpt.Config, params: Any, active: Any) -> int:
    """How many parameters move."""
    layers = jax.tree.leaves(nanogpt.layers(config)(params))
    return sum(
        math.prod(x.shape)
        for layer, x in zip(layers, jax.tree.leaves(params), strict=True)
        if active[layer.index]
    )
