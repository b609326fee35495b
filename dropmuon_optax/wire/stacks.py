"""Trees of leaves as stacks of matrices; and what of them is an owner's.

What moves of a tree is a `Selection`. Its stacks are a dictionary from the stack's
number to an array (k, p, q) of the k members that move, in order; an owner's are
arrays (t, p, q), those that it has not being zero.
"""

from collections.abc import Callable, Sequence
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
ABSENT = np.iinfo(np.int32).max  # the row of what an owner hasn't: past the end


class Selection(NamedTuple):
    """The matrices that move.

    Attributes:
      ownership: of all matrices.
      parts: what moves of each leaf, in flattening order; nothing where it has no
        entries.
      members: for each stack in which something moves, which of its members do, in
        order.
      tables: the same by owner and place, int (n, t), with −1 where an owner has fewer.
    """

    ownership: Ownership
    parts: list[Part]
    members: dict[int, list[int]]
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
        return len(self.members[stack]) == len(self.ownership.stacks[stack].radii)

    def places(self, stack: int) -> np.ndarray:
        """Where at its owner each member lies; past the end where there is none."""
        table = self.tables[stack]
        everywhere = self.ownership.places(stack)
        return np.where(table < 0, ABSENT, everywhere[table]).astype(np.int32)

    def by_owner(self, stack: int) -> np.ndarray:
        """`members` by owner and place, (n, t); past the end where there is none."""
        table = self.tables[stack]
        return np.where(table < 0, ABSENT, table).astype(np.int32)

    def rows(self, stack: int) -> np.ndarray:
        """The same, as numbers of `members`: the row of a stack of what moves."""
        row = {member: i for i, member in enumerate(self.members[stack])}
        flat = [row.get(int(j), ABSENT) for j in self.tables[stack].reshape(-1)]
        return np.array(flat, np.int32).reshape(self.tables[stack].shape)

    @property
    def decays(self) -> dict[int, bool]:
        """Of each stack, whether weight decay is for it."""
        return {s: self.ownership.stacks[s].decays for s in self.tables}

    @property
    def sent(self) -> "Selection":
        """The same as it is sent: blocks of rows as members, at who carries them."""
        parts = self.ownership.parts
        if max(parts, default=1) == 1:
            return self
        carried = self.ownership.carried
        members = {
            s: [j * parts[s] + i for j in own for i in range(parts[s])]
            for s, own in self.members.items()
        }
        tables = {s: carried.table(s, own) for s, own in members.items()}
        return Selection(carried, self.parts, members, tables)

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
    chosen = {s: sorted(members[s]) for s in sorted(members)}
    tables = {s: ownership.table(s, own) for s, own in chosen.items()}
    return Selection(ownership, parts, chosen, tables)


def collect(selection: Selection, tree: Any) -> Stacks:
    """The stacks of a tree that holds what moves (see `parts.narrow`), in float32."""
    rows: dict[int, list[Array]] = {}
    order: dict[int, list[int]] = {}
    for (leaf, part), x in zip(selection.leaves, jax.tree.leaves(tree), strict=True):
        for piece, stack in zip(leaf.pieces, leaf.to_stacks(x), strict=True):
            rows.setdefault(piece.stack, []).append(stack)
            order.setdefault(piece.stack, []).extend(_members(piece, part))
    stacks = {}
    for s, members in selection.members.items():
        place = {member: i for i, member in enumerate(order[s])}
        stacks[s] = _rows(jnp.concatenate(rows[s]), [place[j] for j in members])
    return stacks


def scatter(selection: Selection, stacks: Stacks, like: Any) -> Any:
    """The inverse of `collect`: a tree of the structure and dtypes of `like`."""
    flat, structure = jax.tree.flatten(like)
    where = {
        s: {member: i for i, member in enumerate(members)}
        for s, members in selection.members.items()
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
    """Some matrices of a stack (k, p, q), by their number in it."""
    first = index[0]
    if index == list(range(first, first + len(index))):
        return stack[first : first + len(index)]
    return stack[np.array(index, np.int32)]


def cut(selection: Selection, stacks: Stacks) -> Stacks:
    """Matrices (k, p, q) as their blocks of rows, those of each together."""
    return {
        s: x.reshape(-1, x.shape[1] // selection.ownership.parts[s], x.shape[2])
        for s, x in stacks.items()
    }


def joined(selection: Selection, blocks: Stacks) -> Stacks:
    """The inverse of `cut`."""
    return {s: x.reshape(-1, *selection.shapes[s]) for s, x in blocks.items()}


def blocks_of(
    selection: Selection, numbers: Callable[[int], np.ndarray], owner: Any
) -> dict[int, Array]:
    """Of each stack, the numbers of an owner's matrices as those of their blocks."""
    found = {}
    for s in selection.tables:
        rows, k = numbers(s), selection.ownership.parts[s]
        blocks = rows[..., None].astype(int) * k + np.arange(k)
        blocks = np.where(rows[..., None] == ABSENT, ABSENT, blocks)
        blocks = blocks.reshape(len(rows), -1).astype(np.int32)
        found[s] = jnp.asarray(blocks)[owner]
    return found


def of_owner(selection: Selection, stacks: Stacks, owner: Any) -> Stacks:
    """An owner's matrices, (t, p, q), of the stacks of what moves."""
    return {
        s: filled(x, jnp.asarray(selection.rows(s))[owner]) for s, x in stacks.items()
    }


def of_owners(selection: Selection, stacks: Stacks) -> Stacks:
    """All owners' matrices, (n, t, p, q)."""
    return {s: filled(x, selection.rows(s)) for s, x in stacks.items()}


def from_owners(selection: Selection, owned: Stacks) -> Stacks:
    """The inverse of `of_owners`."""
    stacks = {}
    for s, x in owned.items():
        rows = selection.rows(s).reshape(-1)
        index = np.argsort(rows, kind="stable")[: len(selection.members[s])]
        stacks[s] = _rows(x.reshape(-1, *x.shape[2:]), index.tolist())
    return stacks


def filled(x: Array, index: Any) -> Array:
    """Rows of `x`; zero past the end."""
    return x.at[index].get(mode="fill", fill_value=0)


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
            taken[s] = filled(whole[s], places)
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
