"""Trees of leaves as stacks of matrices, laid out by owner; and back.

What moves of a tree is a `Selection`. Its stacks are a dictionary from the stack's
number to an array (n, t, p, q): t matrices p × q for each of n owners, those that an
owner hasn't being zero.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dropmuon_optax.compressors import Compressor
from dropmuon_optax.layers.parts import WHOLE, Part
from dropmuon_optax.lmo import lmo_rows
from dropmuon_optax.wire.ownership import Ownership
from dropmuon_optax.wire.pieces import OwnedLeaf, Piece

Stacks = dict[int, Array]


class Selection(NamedTuple):
    """The matrices that move.

    Attributes:
      ownership: of all matrices.
      parts: what moves of each leaf, in flattening order; nothing where it has no
        entries.
      tables: for each stack in which something moves, its members by owner and place,
        int (n, t), with −1 where an owner has fewer.
    """

    ownership: Ownership
    parts: list[Part]
    tables: dict[int, np.ndarray]

    @property
    def leaves(self) -> list[tuple[OwnedLeaf, Part]]:
        """The leaves of which something moves."""
        pairs = zip(self.ownership.leaves, self.parts, strict=True)
        return [(leaf, part) for leaf, part in pairs if part.any]

    @property
    def shapes(self) -> dict[int, tuple[int, int]]:
        """Of each stack, (p, q)."""
        return {s: self.ownership.stacks[s].shape for s in self.tables}

    @property
    def counts(self) -> dict[int, int]:
        """Of each stack, t: how many matrices an owner has at most."""
        return {s: table.shape[1] for s, table in self.tables.items()}

    @property
    def workers(self) -> dict[int, Compressor]:
        """Of each stack, 𝒞_j."""
        return {s: self.ownership.stacks[s].worker for s in self.tables}

    @property
    def servers(self) -> dict[int, Compressor]:
        """Of each stack, 𝒞."""
        return {s: self.ownership.stacks[s].server for s in self.tables}

    def is_whole(self, stack: int) -> bool:
        """Whether all members of the stack move."""
        if stack not in self.tables:
            return False
        everything = len(self.ownership.stacks[stack].radii)
        return int((self.tables[stack] >= 0).sum()) == everything

    def places(self, stack: int) -> np.ndarray:
        """Where at its owner each member lies; past the end where there is none."""
        table, n = self.tables[stack], self.ownership.num_owners
        return np.where(table < 0, np.iinfo(np.int32).max, table // n)

    def members(self, stack: int) -> np.ndarray:
        """Its members by owner and place, (n, t); past the end where there is none."""
        table = self.tables[stack]
        return np.where(table < 0, np.iinfo(np.int32).max, table)

    @property
    def decays(self) -> dict[int, bool]:
        """Of each stack, whether weight decay is for it."""
        return {s: self.ownership.stacks[s].decays for s in self.tables}

    def columns(self, stack: int, count: Any) -> list[Array]:
        """The radius of each member (and L⁰, L¹ likewise) at step k, float32 (n, t)."""
        radii = self.ownership.stacks[stack].radii
        # Any radius for what isn't there: those matrices are zero.
        padded = [*radii, (*[0.0] * (len(radii[0]) - 1), 1.0)]
        columns = [
            [value(count) if callable(value) else value for value in column]
            for column in zip(*padded, strict=True)
        ]
        table = self.tables[stack]
        return [jnp.array(column, jnp.float32)[table] for column in columns]


def select(ownership: Ownership, parts: Sequence[Part] | None = None) -> Selection:
    """What moves; `parts` says what of each leaf, None is everything."""
    if parts is None:
        parts = [WHOLE] * len(ownership.leaves)
    parts = [
        part if leaf.pieces else Part((False,))
        for leaf, part in zip(ownership.leaves, parts, strict=True)
    ]
    members: dict[int, list[int]] = {}
    for leaf, part in zip(ownership.leaves, parts, strict=True):
        if part.any:
            for piece in leaf.pieces:
                members.setdefault(piece.stack, []).extend(_members(piece, part))
    tables = {s: ownership.table(sorted(members[s])) for s in sorted(members)}
    return Selection(ownership, parts, tables)


def collect(selection: Selection, tree: Any) -> Stacks:
    """The stacks of a tree that holds what moves (see `parts.narrow`), in float32."""
    rows: dict[int, list[Array]] = {}
    order: dict[int, list[int]] = {}
    for (leaf, part), x in zip(selection.leaves, jax.tree.leaves(tree), strict=True):
        for piece, stack in zip(leaf.pieces, leaf.to_stacks(x), strict=True):
            rows.setdefault(piece.stack, []).append(stack)
            order.setdefault(piece.stack, []).extend(_members(piece, part))
    stacks = {}
    for s, table in selection.tables.items():
        whole = jnp.concatenate(rows[s])
        place = {member: i for i, member in enumerate(order[s])}
        index = [place.get(int(member), len(place)) for member in table.reshape(-1)]
        if index != list(range(len(whole))):
            whole = jnp.concatenate([whole, jnp.zeros_like(whole[:1])])
            whole = whole[np.array(index, np.int32)]
        stacks[s] = whole.reshape(*table.shape, *whole.shape[1:])
    return stacks


def scatter(selection: Selection, stacks: Stacks, like: Any) -> Any:
    """The inverse of `collect`: a tree of the structure and dtypes of `like`."""
    flat, structure = jax.tree.flatten(like)
    where = {
        s: {int(member): i for i, member in enumerate(table.reshape(-1))}
        for s, table in selection.tables.items()
    }
    leaves = []
    for (leaf, part), x in zip(selection.leaves, flat, strict=True):
        found = [
            _rows(stacks[piece.stack], [where[piece.stack][j] for j in members])
            for piece in leaf.pieces
            for members in [_members(piece, part)]
        ]
        leaves.append(leaf.from_stacks(found).astype(x.dtype))
    return jax.tree.unflatten(structure, leaves)


def _rows(stack: Array, index: list[int]) -> Array:
    """Some matrices of a stack (n, t, p, q), by their number in it."""
    whole, first = stack.reshape(-1, *stack.shape[-2:]), index[0]
    if index == list(range(first, first + len(index))):
        return whole[first : first + len(index)]
    return whole[np.array(index, np.int32)]


def oracle(selection: Selection, owner: Any, count: Any, stacks: Stacks) -> Stacks:
    """−LMO of what moves and is this owner's, each matrix with its radius at step k."""
    steps = {}
    for s, stack in stacks.items():
        radii = [column[owner] for column in selection.columns(s, count)]
        steps[s] = lmo_rows(selection.ownership.stacks[s].norm, stack, radii)
    return steps


def take(selection: Selection, whole: Stacks, owner: Any) -> Stacks:
    """What moves of an owner's own matrices: (all of its places, p, q) → (t, p, q)."""
    taken = {}
    for s in selection.tables:
        if selection.is_whole(s):
            taken[s] = whole[s]
        else:
            places = jnp.asarray(selection.places(s))[owner]
            taken[s] = whole[s].at[places].get(mode="fill", fill_value=0)
    return taken


def put(selection: Selection, whole: Stacks, moved: Stacks, owner: Any) -> Stacks:
    """The inverse of `take`; what doesn't move stays as it is."""
    merged = dict(whole)
    for s, rows in moved.items():
        if selection.is_whole(s):
            merged[s] = rows
        else:
            places = jnp.asarray(selection.places(s))[owner]
            merged[s] = whole[s].at[places].set(rows, mode="drop")
    return merged


def _members(piece: Piece, part: Part) -> list[int]:
    """The places in the stack of what moves of a leaf's piece."""
    each = piece.count // len(part.moves)
    return [
        piece.first + row * each + i
        for row, moves in enumerate(part.moves)
        if moves
        for i in range(each)
    ]
