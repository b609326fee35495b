"""Who gets which matrix: all sizes together, so that no owner has much more.

A message is as long as the longest owner's, and every owner runs the oracle over as
many matrices of each stack as any has. Both are known before the first step, and one
may be had for the other: see `share_out`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

EXTRA = 3  # places of a stack beyond the fewest that are tried


@dataclasses.dataclass(frozen=True)
class Lot:
    """The members of a stack, as far as owning them goes.

    Attributes:
      count: how many there are.
      num_bytes: what each one sends, both directions.
      work: what the oracle does on each one, in any unit.
    """

    count: int
    num_bytes: int
    work: int

    def cut(self, parts: int) -> "Lot":
        """The same, each in so many blocks, on which no oracle runs."""
        if parts == 1:
            return self
        return Lot(self.count * parts, self.num_bytes // parts, 0)


@dataclasses.dataclass(frozen=True)
class Shares:
    """Who owns what, and what it costs.

    Attributes:
      owners: of each stack, the owner of each member.
      bytes_ratio: the longest owner's bytes, of the mean's.
      work_ratio: the oracle's work on every owner, of the mean's.
      least_work_ratio: what it is with the fewest places.
    """

    owners: tuple[tuple[int, ...], ...]
    bytes_ratio: float
    work_ratio: float
    least_work_ratio: float

    def score(self, work_share: float) -> float:
        """What is to be small."""
        return (1 - work_share) * self.bytes_ratio + work_share * self.work_ratio

    def least(self, work_share: float) -> float:
        """What it is at best: all bytes evenly, in the fewest places."""
        return 1 - work_share + work_share * self.least_work_ratio


def share_out(lots: Sequence[Lot], num_owners: int, work_share: float) -> Shares:
    """Shares of all owners.

    The members go one after another, the longest first, to whoever has least and a
    place left in their stack. With the fewest places, ⌈count/n⌉, the oracle has least
    to do; more places balance bytes better.

    Args:
      lots: the stacks.
      num_owners: n.
      work_share: of the two ratios' mean that is minimized, the weight of the work's;
        0 is bytes alone.

    Examples:
      One unit 48 times and four 24 times over 64 owners:

      >>> lots = [Lot(48, 1, 1), Lot(24, 4, 4)]
      >>> shares = share_out(lots, 64, work_share=0.25)
      >>> round(shares.bytes_ratio, 2), shares.owners[1] == tuple(range(24))
      (1.78, True)
    """
    found = [_packed(lots, num_owners, extra) for extra in range(EXTRA)]
    return min(found, key=lambda shares: shares.score(work_share))


def _packed(lots: Sequence[Lot], num_owners: int, extra: int) -> Shares:
    """Longest first, with so many places more than the fewest."""
    loads = np.zeros(num_owners)
    owners = [np.zeros(lot.count, int) for lot in lots]
    held = np.zeros((len(lots), num_owners), int)
    for s in sorted(range(len(lots)), key=lambda s: -lots[s].num_bytes):
        places = -(-lots[s].count // num_owners) + (extra if lots[s].work else 0)
        if not lots[s].work:
            places = lots[s].count
        for j in range(lots[s].count):
            free = np.where(held[s] < places, loads, np.inf)
            owner = owners[s][j] = int(np.argmin(free))
            loads[owner] += lots[s].num_bytes
            held[s, owner] += 1
    work = np.array([lot.work for lot in lots], float)
    count = np.array([lot.count for lot in lots], int)
    mean = work @ count / num_owners
    return Shares(
        tuple(tuple(map(int, own)) for own in owners),
        float(loads.max() * num_owners / max(loads.sum(), 1)),
        float(work @ held.max(axis=1) / mean) if mean else 1.0,
        float(work @ -(-count // num_owners) / mean) if mean else 1.0,
    )


def among_carriers(
    lots: Sequence[Lot],
    parts: Sequence[int],
    carriers: Sequence[Sequence[int]],
    num_owners: int,
) -> tuple[tuple[tuple[int, ...], ...], float]:
    """The owner of each member, one of those who carry its blocks; and the work ratio.

    The one with the fewest of its stack, and then with least work.

    Args:
      lots: the stacks.
      parts: of each, the blocks of a member.
      carriers: of each, who carries each block.
      num_owners: n.

    Examples:
      >>> among_carriers([Lot(2, 6, 1)], [2], [(0, 1, 0, 2)], 3)
      (((0, 2),), 1.5)
    """
    work = np.zeros(num_owners)
    owners, held = [list(own) for own in carriers], 0
    for s in sorted(range(len(lots)), key=lambda s: -lots[s].work):
        here = np.zeros(num_owners, int)
        blocks = np.reshape(carriers[s], (lots[s].count, parts[s]))
        owners[s] = []
        for who in blocks.tolist():
            owner = min(who, key=lambda j: (here[j], work[j]))
            owners[s].append(owner)
            here[owner] += 1
            work[owner] += lots[s].work
        held += lots[s].work * int(here.max(initial=0))
    total = sum(lot.work * lot.count for lot in lots)
    ratio = held * num_owners / total if total else 1.0
    return tuple(map(tuple, owners)), ratio


def places(owners: Sequence[int]) -> np.ndarray:
    """The place of each member at its owner: 0, 1, … in the members' order.

    >>> places([0, 1, 1, 0])
    array([0, 0, 1, 1])
    """
    seen: dict[int, int] = {}
    found = []
    for owner in owners:
        found.append(seen.get(owner, 0))
        seen[owner] = found[-1] + 1
    return np.array(found, int)
