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
from dropmuon_optax.wire.stacks import Selection, Stacks, blocks_of, cut, joined

Compressors = Mapping[int, Compressor]  # of each stack
Memory = dict[int, Any]  # of the stacks whose compressor has any


def write(
    selection: Selection,
    compressors: Compressors,
    stacks: Stacks,
    memory: Memory,
    key: Any,
    owner: Any = None,
) -> tuple[dict[int, UInt8[Array, "k size"]], Memory]:
    """𝒞 of the matrices of every stack, or of their blocks of rows, as bytes.

    Args:
      selection: what moves.
      compressors: one for each stack.
      stacks: matrices, (k, p, q).
      memory: what compressors remember, a row for each block.
      key: from which each block draws its own.
      owner: whose matrices they are; None: all that move.

    Returns:
      Rows of bytes for each stack, and the memory after it.
    """
    if owner is None:
        sent = selection.sent.members
        members = places = {s: jnp.asarray(each, jnp.int32) for s, each in sent.items()}
    else:
        members = blocks_of(selection, selection.by_owner, owner)
        places = blocks_of(selection, selection.places, owner)
    rows, after = {}, dict(memory)
    for s, x in cut(selection, stacks).items():
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
    selection: Selection, compressors: Compressors, rows: dict[int, Array]
) -> Stacks:
    """The matrices that arrive, (k, p, q) in float32."""
    return joined(selection, _blocks(selection, compressors, rows))


def _blocks(
    selection: Selection, compressors: Compressors, rows: dict[int, Array]
) -> Stacks:
    """Their blocks of rows."""
    shapes = selection.sent.shapes
    return {s: decode(compressors[s], row, shapes[s]) for s, row in rows.items()}


def letters(selection: Selection, compressors: Compressors) -> Letters:
    """How the payloads of what moves are laid out."""
    sent = selection.sent
    widths = {s: compressors[s].num_bits(sent.shapes[s]) // 8 for s in compressors}
    rows = {s: sent.rows(s) for s in compressors}
    counts = {s: len(sent.members[s]) for s in compressors}
    return Letters(widths, rows, counts)


def read_mean(
    selection: Selection, received: UInt8[Array, "n size"], owner: Any
) -> Stacks:
    """The mean over n senders of what their letters to a carrier stand for.

    Of each block of rows that it carries; a matrix that is sent whole is one.

    One sender after another, so that no more than two copies are held.
    """
    compressors, shapes = selection.workers, selection.sent.shapes
    layout = letters(selection, compressors)
    here = {s: jnp.asarray(layout.present(s))[owner] for s in shapes}

    def one(letter: UInt8[Array, " size"]) -> Stacks:
        found = _blocks(selection, compressors, layout.at_owner(letter, owner))
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
