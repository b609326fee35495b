"""What workers and server send: every stack compressed, in letters of bytes.

A letter is one buffer of bytes for all stacks, so that a step has one collective in
each direction.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from dropmuon_optax.compressors import Compressor
from dropmuon_optax.wire.letters import Letters
from dropmuon_optax.wire.packing import decode, encode
from dropmuon_optax.wire.stacks import Selection, Stacks

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


def letters(selection: Selection, compressors: Compressors) -> Letters:
    """How the payloads of what moves are laid out."""
    widths = {s: compressors[s].num_bits(selection.shapes[s]) // 8 for s in compressors}
    rows = {s: selection.rows(s) for s in compressors}
    counts = {s: len(selection.members[s]) for s in compressors}
    return Letters(widths, rows, counts)


def read_mean(
    selection: Selection, received: UInt8[Array, "n size"], owner: Any
) -> Stacks:
    """The mean over n senders of what their letters to an owner stand for, (t, p, q).

    One sender after another, so that no more than two copies are held.
    """
    compressors, shapes = selection.workers, selection.shapes
    layout = letters(selection, compressors)
    here = {s: jnp.asarray(layout.present(s))[owner] for s in shapes}

    def one(letter: UInt8[Array, " size"]) -> Stacks:
        found = read(compressors, layout.at_owner(letter, owner), shapes)
        return {s: jnp.where(here[s][:, None, None], x, 0) for s, x in found.items()}

    def add(total: Stacks, letter: UInt8[Array, " size"]) -> tuple[Stacks, None]:
        return jax.tree.map(jnp.add, total, one(letter)), None

    # Zero, made of the messages so as to vary over the same mesh axes as they do.
    zero = (received[0, 0] & 0).astype(jnp.float32)
    zeros = {s: jnp.full((len(here[s]), *shape), zero) for s, shape in shapes.items()}
    total, _ = jax.lax.scan(add, zeros, received)
    return jax.tree.map(lambda x: x / len(received), total)


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
