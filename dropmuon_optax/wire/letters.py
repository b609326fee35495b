"""The letters: one row of bytes for each owner, all of one length, and who reads what.

A letter holds the payloads of an owner's matrices one after another, of all stacks, and
is filled up to the longest one's length. Where a payload stands differs by owner, and
one program serves all: letters are made of granules, some bytes each, and where those
of a payload begin is a number in a table that the owner's index looks up.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

LARGEST = 4096  # bytes of a granule
MANY = 2**18  # granules that are few enough to look up one by one
SLACK = 1000  # of more, filling payloads up adds at most one byte for so many


@dataclasses.dataclass(frozen=True, eq=False)
class Letters:
    """How the payloads of stacks are laid out in n letters.

    Attributes:
      widths: of each stack, the bytes of a payload.
      rows: of each stack, its matrices by owner and place, (n, t), as numbers of the
        stack's rows; negative or past the end where an owner has fewer.
      counts: of each stack, how many rows it has.
    """

    widths: Mapping[int, int]
    rows: Mapping[int, np.ndarray]
    counts: Mapping[int, int]

    @functools.cached_property
    def granule(self) -> int:
        """Bytes: the largest power of two that adds nothing; or next to, of many."""
        total = sum(self.counts[s] * width for s, width in self.widths.items())

        def largest(allowed: int) -> int:
            size = LARGEST
            while sum(n * (-self.widths[s] % size) for s, n in self.counts.items()) > (
                allowed
            ):
                size //= 2
            return size

        exact = largest(0)
        return exact if total <= MANY * exact else largest(total // SLACK)

    @functools.cached_property
    def spans(self) -> dict[int, int]:
        """Of each stack, the granules of a payload."""
        return {s: -(-width // self.granule) for s, width in self.widths.items()}

    def present(self, stack: int) -> np.ndarray:
        """Whether an owner has a matrix in a place, (n, t)."""
        rows = self.rows[stack]
        return (rows >= 0) & (rows < self.counts[stack])

    @functools.cached_property
    def starts(self) -> dict[int, np.ndarray]:
        """Of each stack, where the payload in each place begins, granules, (n, t)."""
        starts, ends = {}, 0
        for s in self.rows:
            here = np.cumsum(self.present(s), axis=1) * self.spans[s]
            starts[s] = ends + here - self.spans[s]
            ends = ends + here[:, -1:]
        return {s: np.where(self.present(s), starts[s], 0) for s in starts}

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Granules of each owner's payloads, (n,)."""
        parts = [self.present(s).sum(axis=1) * self.spans[s] for s in self.rows]
        return np.sum(parts, axis=0)

    @property
    def length(self) -> int:
        """Granules of a letter: the longest owner's."""
        return int(self.lengths.max())

    # ----------------------------------------------------------- writing and reading

    def to_owners(self, rows: Mapping[int, Array]) -> UInt8[Array, "n size"]:
        """A letter to each owner, of the payloads of all stacks, (k, bytes) each."""
        index = np.full((len(self.lengths), self.length), -1)
        first = 0
        for s, span in self.spans.items():
            owners, places = np.nonzero(self.present(s))
            begins = self.starts[s][owners, places][:, None] + np.arange(span)
            here = self.rows[s][owners, places][:, None] * span + np.arange(span)
            index[owners[:, None], begins] = first + here
            first += self.counts[s] * span
        return self._taken(self._granules(rows), index).reshape(len(index), -1)

    def at_owner(
        self, letter: UInt8[Array, " size"], owner: Array | int
    ) -> dict[int, UInt8[Array, "t bytes"]]:
        """What an owner's letter says, (t, bytes) of each stack; any where none is."""
        granules = letter.reshape(-1, self.granule)
        found = {}
        for s in self.spans:
            begins = jnp.asarray(self.starts[s].astype(np.int32))[owner]
            found[s] = self._payloads(granules, begins, s)
        return found

    def from_owner(self, rows: Mapping[int, Array], owner: Array | int) -> Array:
        """An owner's letter to all, of the payloads in its places, (t, bytes) each."""
        index = np.full((len(self.lengths), self.length), -1)
        first = 0
        for s, span in self.spans.items():
            owners, places = np.nonzero(self.present(s))
            begins = self.starts[s][owners, places][:, None] + np.arange(span)
            here = first + places[:, None] * span + np.arange(span)
            index[owners[:, None], begins] = here
            first += self.rows[s].shape[1] * span
        mine = jnp.asarray(index.astype(np.int32))[owner]
        return self._taken(self._granules(rows), mine).reshape(-1)

    def at_all(
        self, letters: UInt8[Array, "n size"]
    ) -> dict[int, UInt8[Array, "k bytes"]]:
        """What all owners' letters say, (k, bytes) of each stack."""
        granules = letters.reshape(-1, self.granule)
        found = {}
        for s in self.spans:
            owners, places = np.nonzero(self.present(s))
            begins = np.zeros(self.counts[s], np.int32)
            begins[self.rows[s][owners, places]] = (
                owners * self.length + self.starts[s][owners, places]
            )
            found[s] = self._payloads(granules, jnp.asarray(begins), s)
        return found

    def _granules(self, rows: Mapping[int, Array]) -> UInt8[Array, "g granule"]:
        """Payloads of all stacks, each filled up to whole granules."""
        parts = []
        for s, span in self.spans.items():
            more = span * self.granule - self.widths[s]
            parts.append(jnp.pad(rows[s], ((0, 0), (0, more))).reshape(-1))
        return jnp.concatenate(parts).reshape(-1, self.granule)

    def _taken(self, granules: Array, index: np.ndarray | Array) -> Array:
        """Granules by number; zeros where it is negative."""
        index = jnp.where(index < 0, len(granules), index).astype(jnp.int32)
        return granules.at[index].get(mode="fill", fill_value=0)

    def _payloads(self, granules: Array, begins: Array, stack: int) -> Array:
        """Payloads that begin at these granules, without what they end with."""
        inside = jnp.arange(self.spans[stack], dtype=jnp.int32)
        found = granules[begins[:, None] + inside[None]]
        return found.reshape(len(found), -1)[:, : self.widths[stack]]
