"""What workers and server send: every stack compressed, in one row of bytes.

A message is one buffer of bytes for all stacks, so that a step has one collective in
each direction.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from dropmuon_optax.compressors import Compressor
from dropmuon_optax.wire.packing import decode, encode
from dropmuon_optax.wire.stacks import Stacks

Compressors = Mapping[int, Compressor]  # of each stack
Memory = dict[int, Any]  # of the stacks whose compressor has any


def write(
    compressors: Compressors,
    stacks: Stacks,
    memory: Memory,
    key: Any,
    members: Mapping[int, Any],
    places: Mapping[int, Any],
) -> tuple[dict[int, UInt8[Array, "k size"]], Memory]:
    """𝒞 of the matrices of every stack, as bytes.

    Args:
      compressors: one for each stack.
      stacks: matrices, (k, p, q).
      memory: what compressors remember, row by row.
      key: from which each member draws its own.
      members: for each stack the members that the k matrices are, int (k,).
      places: likewise, their rows in the memory; past the end for what has none.

    Returns:
      Rows of bytes for each stack, and the memory after it.
    """
    rows, after = {}, dict(memory)
    for s, x in stacks.items():
        of_stack = jax.random.fold_in(key, s)
        keys = jax.vmap(lambda j, k=of_stack: jax.random.fold_in(k, j))(members[s])
        state = jax.tree.map(
            lambda rows, j=places[s]: rows.at[j].get(mode="clip"), memory.get(s, ())
        )
        rows[s], state = encode(compressors[s], x, state, keys)
        if s in memory:
            after[s] = jax.tree.map(
                lambda old, new, j=places[s]: old.at[j].set(new, mode="drop"),
                memory[s],
                state,
            )
    return rows, after


def read(
    compressors: Compressors, rows: dict[int, Array], shapes: Mapping[int, Any]
) -> Stacks:
    """The matrices that arrive, (k, p, q) in float32."""
    return {s: decode(compressors[s], row, shapes[s]) for s, row in rows.items()}


def read_mean(
    compressors: Compressors,
    received: UInt8[Array, "n size"],
    shapes: Mapping[int, Any],
    counts: Mapping[int, int],
) -> Stacks:
    """The mean over n senders of what their messages stand for, (t, p, q).

    One sender after another, so that no more than two copies are held.
    """

    def one(row: UInt8[Array, " size"]) -> Stacks:
        return read(compressors, split(compressors, row[None], shapes, counts), shapes)

    def add(total: Stacks, row: UInt8[Array, " size"]) -> tuple[Stacks, None]:
        return jax.tree.map(jnp.add, total, one(row)), None

    # Zero, made of the messages so as to vary over the same mesh axes as they do.
    zero = (received[0, 0] & 0).astype(jnp.float32)
    zeros = {s: jnp.full((counts[s], *shapes[s]), zero) for s in counts}
    total, _ = jax.lax.scan(add, zeros, received)
    return jax.tree.map(lambda x: x / len(received), total)


def join(rows: dict[int, UInt8[Array, "k size"]], num_messages: int) -> Array:
    """The rows of all stacks as messages, (num_messages, bytes)."""
    return jnp.concatenate([r.reshape(num_messages, -1) for r in rows.values()], axis=1)


def split(
    compressors: Compressors,
    messages: UInt8[Array, "n size"],
    shapes: Mapping[int, Any],
    counts: Mapping[int, int],
) -> dict[int, UInt8[Array, "k bytes"]]:
    """The inverse of `join`: rows of each stack, `counts` of them in a message."""
    rows, start = {}, 0
    for s, count in counts.items():
        width = compressors[s].num_bits(shapes[s]) // 8
        stop = start + count * width
        rows[s] = messages[:, start:stop].reshape(-1, width)
        start = stop
    return rows


def first_memory(compressors: Compressors, shapes: Any, counts: Any) -> Memory:
    """What the compressors remember before the first step."""
    return {
        s: jax.tree.map(
            lambda x, k=counts[s]: jnp.broadcast_to(x, (k, *np.shape(x))),
            compressor.init(shapes[s]),
        )
        for s, compressor in compressors.items()
        if compressor.stateful
    }
