"""Blocks of rows between the workers that carry them and the owners of the matrices.

Where one matrix is more than a worker's share of all bytes (`Ownership.parts`), its
blocks have carriers. A carrier averages what all workers sent of a block and passes the
mean on to the owner, which alone runs the oracle; the owner's compressed step goes back
to the carriers, and from them to all. Both ways are rounds of a permutation: in each,
a worker sends at most one block and gets at most one. Bytes are small beside what n
workers send, for a mean goes once.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from dropmuon_optax.wire.collectives import Axis
from dropmuon_optax.wire.messages import letters, read_mean
from dropmuon_optax.wire.stacks import ABSENT, Selection, Stacks, filled, joined


class Move(NamedTuple):
    """A block's way: (worker, place there) to (worker, place there)."""

    stack: int
    source: tuple[int, int]
    target: tuple[int, int]

    def back(self) -> "Move":
        """The other way."""
        return Move(self.stack, self.target, self.source)


def moves(selection: Selection) -> list[Move]:
    """From its carrier to its owner, for every block of what moves."""
    found = []
    sent, parts = selection.sent, selection.ownership.parts
    for s, table in selection.tables.items():
        place = {
            j * parts[s] + i: (owner, t * parts[s] + i)
            for (owner, t), j in np.ndenumerate(table)
            if j >= 0
            for i in range(parts[s])
        }
        for (carrier, t), block in np.ndenumerate(sent.tables[s]):
            if block >= 0:
                found.append(Move(s, (carrier, t), place[int(block)]))
    return found


def rounds(among: list[Move], widths: Mapping[int, int]) -> list[list[Move]]:
    """The moves between different workers, the wide ones first.

    >>> far = [Move(0, (a, 0), (b, 0)) for a, b in ((0, 1), (1, 0), (2, 1), (3, 3))]
    >>> [[(m.source[0], m.target[0]) for m in one] for one in rounds(far, {0: 8})]
    [[(0, 1), (1, 0)], [(2, 1)]]
    """
    found: list[list[Move]] = []
    busy: list[tuple[set[int], set[int]]] = []
    for move in sorted(among, key=lambda move: -widths[move.stack]):
        a, b = move.source[0], move.target[0]
        if a == b:
            continue
        free = (r for r, (x, y) in enumerate(busy) if a not in x and b not in y)
        number = next(free, len(found))
        if number == len(found):
            found.append([])
            busy.append((set(), set()))
        found[number].append(move)
        busy[number][0].add(a)
        busy[number][1].add(b)
    return found


def mean_at_owners(
    axis: Axis, selection: Selection, received: UInt8[Array, "n size"], here: Any
) -> Stacks:
    """The mean of what the workers' letters say, at the owners: matrices (t, p, q)."""
    parts = selection.ownership.parts
    blocks = read_mean(selection, received, here)
    if selection.sent is selection:
        return blocks
    rows = {s: x.reshape(len(x), -1) for s, x in blocks.items()}
    places = {s: t * parts[s] for s, t in selection.counts.items()}
    return joined(selection, _carry(axis, rows, moves(selection), places, here))


def from_owners(
    axis: Axis, selection: Selection, rows: dict[int, Array], here: Any
) -> dict[int, Array]:
    """Of all blocks, what owners send of theirs: (t·k, bytes) → (blocks, bytes)."""
    if selection.sent is not selection:
        way = [move.back() for move in moves(selection)]
        rows = _carry(axis, rows, way, selection.sent.counts, here)
    layout = letters(selection, selection.servers)
    return layout.at_all(axis.gather(layout.from_owner(rows, here)))


def passed_on(selection: Selection) -> tuple[int, int]:
    """Bytes that all rounds carry, to the owners and from them.

    As counters of bytes have it, for which every worker sends in every round.
    """
    if selection.sent is selection:
        return 0, 0
    way, shapes = moves(selection), selection.sent.shapes
    dense = {s: 4 * p * q for s, (p, q) in shapes.items()}
    coded = {s: selection.servers[s].num_bits(shapes[s]) // 8 for s in shapes}
    there = rounds(way, dense)
    back = rounds([move.back() for move in way], coded)
    return _widest(there, dense), _widest(back, coded)


def _widest(among: list[list[Move]], widths: Mapping[int, int]) -> int:
    return sum(max(widths[move.stack] for move in one) for one in among)


def _carry(
    axis: Axis,
    rows: dict[int, Array],
    way: list[Move],
    places: Mapping[int, int],
    here: Any,
) -> dict[int, Array]:
    """Rows at their targets; zeros in places to which none goes."""
    n = axis.size
    widths = {s: x.shape[1] for s, x in rows.items()}
    stay = {s: np.full((n, t), ABSENT, np.int32) for s, t in places.items()}
    for s, (a, source), (b, target) in way:
        if a == b:
            stay[s][b, target] = source
    found = {s: filled(x, jnp.asarray(stay[s])[here]) for s, x in rows.items()}
    for one in rounds(way, widths):
        width = max(widths[move.stack] for move in one)
        takes = {s: np.full((n, 1), ABSENT, np.int32) for s, *_ in one}
        puts = {s: np.full((n, 1), ABSENT, np.int32) for s, *_ in one}
        for s, (a, source), (b, target) in one:
            takes[s][a], puts[s][b] = source, target
        mine = {s: filled(rows[s], jnp.asarray(takes[s])[here])[0] for s in takes}
        padded = [jnp.pad(x, (0, width - widths[s])) for s, x in mine.items()]
        row = sum(padded[1:], padded[0])  # one block at most; the others are zeros
        got = axis.send(row, [(m.source[0], m.target[0]) for m in one])
        for s, table in puts.items():
            place = jnp.asarray(table)[here]
            part = got[None, : widths[s]]
            found[s] = found[s].at[place].set(part, mode="drop")
    return found
