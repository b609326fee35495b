"""A leaf as members of stacks: its pieces, cut into blocks and transposed; and back."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from dropmuon_optax.layers.views import View


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of a leaf, and how it falls into members of a stack.

    Attributes:
      shape: of each of its matrices, (m, n).
      axis: the axis of the matrices that is cut into blocks; None if none is.
      blocks: the number of blocks.
      flips: whether the members are transposed, to lie in a stack with others; not
        where a compressor tells rows from columns.
      stack: the number of the stack.
      first: the place of its first member in the stack.
      count: the number of its members; those of one layer lie together.
    """

    shape: tuple[int, int]
    axis: int | None
    blocks: int
    flips: bool
    stack: int = 0
    first: int = 0
    count: int = 0

    @property
    def member_shape(self) -> tuple[int, int]:
        """Of each member, (p, q)."""
        sides = list(self.shape)
        if self.axis is not None:
            sides[self.axis] = -(-sides[self.axis] // self.blocks)
        p, q = reversed(sides) if self.flips else sides
        return p, q

    def to_stack(self, matrices: Float[Array, "k m n"]) -> Float[Array, "c p q"]:
        """The matrices, of all layers or some, as members."""
        if self.axis is not None:
            matrices = _cut(matrices, 1 + self.axis, self.blocks)
        return matrices.mT if self.flips else matrices

    def from_stack(self, stack: Float[Array, "c p q"]) -> Float[Array, "k m n"]:
        """The inverse of `to_stack`."""
        matrices = stack.mT if self.flips else stack
        if self.axis is None:
            return matrices
        m, n = self.shape
        return _join(matrices, 1 + self.axis, self.blocks)[:, :m, :n]


@dataclasses.dataclass(frozen=True)
class OwnedLeaf:
    """One leaf and its pieces: one, unless its view splits it.

    Attributes:
      path: the leaf's path.
      shape: the leaf's shape.
      view: of the leaf.
      layers: the axis over layers; None if the leaf is one layer's.
      pieces: in the order of the view's.
    """

    path: str
    shape: tuple[int, ...]
    view: View
    layers: int | None
    pieces: tuple[Piece, ...]

    def to_stacks(self, x: Array) -> list[Array]:
        """The leaf, or some layers of a stacked one: each piece's members, float32."""
        pieces = self.view.to_pieces(x.astype(jnp.float32))
        return [
            piece.to_stack(matrices)
            for piece, matrices in zip(self.pieces, pieces, strict=True)
        ]

    def from_stacks(self, stacks: Sequence[Array]) -> Array:
        """The inverse of `to_stacks`, in float32."""
        shape = list(self.shape)
        if self.layers is not None:
            share = len(stacks[0]) * shape[self.layers]
            shape[self.layers] = share // self.pieces[0].count
        pieces = [
            piece.from_stack(stack)
            for piece, stack in zip(self.pieces, stacks, strict=True)
        ]
        return self.view.from_pieces(pieces, tuple(shape))


def _cut(x: Array, axis: int, blocks: int) -> Array:
    """Matrices (k, m, n) as blocks along an axis, (k·blocks, …), padded with zeros."""
    pad = [(0, 0)] * 3
    pad[axis] = (0, -x.shape[axis] % blocks)
    parts = jnp.split(jnp.pad(x, pad), blocks, axis)
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def _join(x: Array, axis: int, blocks: int) -> Array:
    """The inverse of `_cut`, padding included."""
    parts = x.reshape(-1, blocks, *x.shape[1:])
    return jnp.concatenate([parts[:, i] for i in range(blocks)], axis)
