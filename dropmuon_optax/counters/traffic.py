"""What each collective sends, by formula; their sum is a `WireBytes`.

Counted by the algorithms that send least: a ring for the reductions and gathers,
pairwise for the exchanges. With n devices in a group,

    all-reduce           2(n−1)/n · size
    all-gather           (n−1)/n · size of the result
    reduce-scatter       (n−1) · size of the result
    all-to-all           (n−1)/n · size
    collective-permute   size, unless every device sends to itself
    collective-broadcast size
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import final

from dropmuon_optax.nouns import Noun

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Collective(Noun):
    """A place in a program where devices exchange data.

    Attributes:
      kind: as in compiled programs, "all-reduce".
      dtype: as in compiled programs, "f32"; several of a tuple are joined by "+".
      result_bytes: size of what one execution leaves on a device.
      group_size: devices that exchange with each other, 2 for a permutation; None if
        that could not be read.
      trip_count: executions in one call; None if only the run can tell.
      wire_bytes: bytes that a device sends in one call; inf where the two above, or
        the kind, leave it open.
    """

    kind: str
    dtype: str
    result_bytes: int
    group_size: int | None
    trip_count: int | None
    wire_bytes: int | float


@final
@dataclasses.dataclass(frozen=True, repr=False)
class WireBytes(Noun):
    """What one device sends in one call of a program; printed as a table.

    Attributes:
      collectives: where it sends.
      unattributed: what could not be counted, in words. Where a conditional chooses,
        the branch that sends most is counted, and said here. Where no bound is known
        (a loop whose length only the run can tell, a ragged exchange) the bytes are
        inf, so that such a program meets no budget.
    """

    collectives: tuple[Collective, ...] = ()
    unattributed: tuple[str, ...] = ()

    @property
    def total(self) -> int | float:
        """Bytes sent per device and call."""
        return sum(found.wire_bytes for found in self.collectives)

    @property
    def by_kind(self) -> dict[str, int | float]:
        """The same, by kind of collective."""
        return self._by("kind")

    @property
    def by_dtype(self) -> dict[str, int | float]:
        """The same, by dtype: does what was packed into u8 travel as u8?"""
        return self._by("dtype")

    def _by(self, attribute: str) -> dict[str, int | float]:
        sums: dict[str, int | float] = {}
        for found in self.collectives:
            name = getattr(found, attribute)
            sums[name] = sums.get(name, 0) + found.wire_bytes
        return sums

    def __str__(self) -> str:
        rows = [("kind", "places", "runs", "bytes sent")]
        for kind in [*self.by_kind, None]:
            own = [found for found in self.collectives if kind in (found.kind, None)]
            trips = [found.trip_count for found in own]
            runs = "?" if None in trips else f"{sum(trips):,}"  # pyright: ignore[reportArgumentType, reportCallIssue]
            sent = self.total if kind is None else self.by_kind[kind]
            rows.append((kind or "total", f"{len(own):,}", runs, f"{sent:,.0f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        return "\n".join([*lines, *(f"! {note}" for note in self.unattributed)])


def collective(
    kind: str, dtypes: Iterable[str], size: int, n: int | None, name: str
) -> WireBytes:
    """One execution of a collective that leaves `size` bytes on each of n devices."""
    dtype = "+".join(dict.fromkeys(dtypes))
    if kind not in KINDS:
        note = f"{kind} {name!r}: how much it sends is decided by the run"
        return WireBytes((Collective(kind, dtype, size, n, 1, math.inf),), (note,))
    if n is None:
        note = f"{kind} {name!r}: which devices take part could not be read"
        return WireBytes((Collective(kind, dtype, size, n, 1, math.inf),), (note,))
    return WireBytes((Collective(kind, dtype, size, n, 1, _sent(kind, size, n)),))


SIMULATED = "simulated_workers_"  # the scope in programs of such, before their number


def simulation(num_workers: int) -> WireBytes:
    """What stands for the collectives that a simulation of workers hasn't.

    Nothing crosses a wire there, which must not pass for a budget that is kept.
    """
    note = (
        f"a simulation of {num_workers} workers on one device, which sends nothing; "
        "what workers would send is counted by `count_traced_bytes(worker_map(step, "
        f"'data', state, jax.sharding.AbstractMesh(({num_workers},), ('data',))), …)`"
    )
    absent = Collective("simulated", "", 0, num_workers, 1, math.inf)
    return WireBytes((absent,), (note,))


def _sent(kind: str, size: int, n: int) -> int | float:
    """Bytes that a device of n sends, by the table at the top."""
    if n == 1:
        return 0
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    if kind == "reduce-scatter":
        return (n - 1) * size
    shares = (2 if kind == "all-reduce" else 1) * (n - 1) * size
    return shares / n if shares % n else shares // n


def together(parts: Iterable[WireBytes]) -> WireBytes:
    """One after the other."""
    collectives: list[Collective] = []
    notes: list[str] = []
    for part in parts:
        collectives += part.collectives
        notes += part.unattributed
    return WireBytes(tuple(collectives), tuple(dict.fromkeys(notes)))


def repeated(body: WireBytes, trips: int | None, name: str) -> WireBytes:
    """A loop."""
    if not body.collectives:
        return body

    def again(found: Collective) -> Collective:
        if trips is None:
            sent = math.inf if found.wire_bytes else 0
            return dataclasses.replace(found, trip_count=None, wire_bytes=sent)
        before = found.trip_count
        return dataclasses.replace(
            found,
            trip_count=None if before is None else trips * before,
            wire_bytes=trips * found.wire_bytes if trips else 0,
        )

    notes = body.unattributed
    if trips is None:
        kinds = ", ".join(body.by_kind)
        notes = (*notes, f"{kinds} in the loop {name!r}, whose length is not known")
    return WireBytes(tuple(map(again, body.collectives)), notes)


def largest(branches: Iterable[WireBytes], name: str) -> WireBytes:
    """A conditional: the branch that sends most, and a note if the others send less."""
    found = list(branches)
    if not found:
        return WireBytes()
    most = max(found, key=lambda branch: branch.total)
    if all(branch.total == most.total for branch in found):
        return most
    totals = ", ".join(f"{branch.total:,.0f}" for branch in found)
    note = f"the branches of {name!r} send {totals} bytes; the most is counted"
    return WireBytes(most.collectives, (*most.unattributed, note))
