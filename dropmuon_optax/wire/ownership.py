"""Which matrices of a tree lie in which stack, and which worker owns which of them.

Matrices of one shape, norm and compressors form a stack; its j-th member belongs to
worker j mod n, where it takes place j // n. Members go by layer, so that a suffix of
layers is spread evenly too. A matrix whose oracle works on blocks of rows or columns
(embeddings and heads under the sign or row norm) is cut into n blocks, one each, so
that no worker owns it all.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dropmuon_optax.compressors import BFloat16, Compressor, Identity
from dropmuon_optax.layers.leaves import (
    AdaptiveRadius,
    LayersFn,
    Leaf,
    join,
    movable_norm,
)
from dropmuon_optax.layers.rules import Rules, choose
from dropmuon_optax.layers.trees import masked_by
from dropmuon_optax.layers.views import View
from dropmuon_optax.norms import Norm, unscaled

MIN_BLOCK = 4096  # entries; a smaller block isn't worth its place in a stack


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of a leaf, and how it falls into members of a stack.

    Attributes:
      shape: of each of its matrices, (m, n).
      axis: the axis of the matrices that is cut into blocks; None if none is.
      blocks: the number of blocks.
      flips: whether the members are transposed, to lie in a stack with others.
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


@dataclasses.dataclass(frozen=True)
class Stack:
    """Members of one shape, norm and compressors.

    Attributes:
      shape: of each member, (m, n).
      norm: without its scale, which is in `radii`.
      worker: the workers' compressor.
      server: the server's compressor.
      decays: whether weight decay is for them.
      radii: the radius of each member, (t,) or (L⁰, L¹); t may be a schedule.
    """

    shape: tuple[int, int]
    norm: Norm
    worker: Compressor
    server: Compressor
    decays: bool = True
    radii: tuple[tuple[float | optax.Schedule, ...], ...] = ()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Ownership:
    """Every leaf with its pieces, the stacks, and the number of owners n."""

    num_owners: int
    leaves: tuple[OwnedLeaf, ...]
    stacks: tuple[Stack, ...]

    def table(self, members: Sequence[int]) -> np.ndarray:
        """Members by owner and place, int (n, t); −1 where an owner has fewer."""
        n = self.num_owners
        lists = [[j for j in members if j % n == owner] for owner in range(n)]
        width = max(map(len, lists))
        rows = [row + [-1] * (width - len(row)) for row in lists]
        return np.array(rows, np.int32).reshape(n, width)


def own(
    layers: LayersFn,
    params: Any,
    num_owners: int,
    num_blocks: int,
    worker_compressor: Compressor | Rules,
    server_compressor: Compressor | Rules | None,
    weight_decay_mask: Any = None,
) -> Ownership:
    """The stacks of a tree of parameters, and who owns what.

    Args:
      layers: a function from the parameters to a tree of `Layer`s.
      params: the parameters, or any tree of their structure, shapes and dtypes.
      num_owners: n.
      num_blocks: how many blocks a large matrix whose oracle allows it is cut into.
      worker_compressor: a compressor, or a list of (regex, compressor).
      server_compressor: likewise; None is dense, in the parameters' dtype.
      weight_decay_mask: which leaves decay, as `masked_by` takes it.

    Raises:
      ValueError: if a leaf has no norm, is no real floating-point array, or a
        compressor doesn't fit it; naming its path.
    """
    numbers: dict[Any, int] = {}
    radii: list[list[tuple[Any, ...]]] = []
    decays = jax.tree.leaves(masked_by(weight_decay_mask, params))
    leaves = join(layers, params)
    order = sorted(range(len(leaves)), key=lambda i: (leaves[i].start or 0, i))
    found: dict[int, OwnedLeaf] = {}
    for i in order:
        leaf, pieces = leaves[i], []
        for piece in _pieces(leaf, num_blocks):
            norm, columns = _geometry(leaf, piece.shape)
            shape = piece.member_shape
            worker = choose(worker_compressor, leaf.path, shape)
            server = _server_compressor(server_compressor, leaf, shape)
            key = Stack(shape, norm, worker, server, decays[i]), len(columns)
            number = numbers.setdefault(key, len(numbers))
            if number == len(radii):
                radii.append([])
            first = len(radii[number])
            pieces.append(dataclasses.replace(piece, stack=number, first=first))
            radii[number].extend([columns] * piece.count)
        whole = jnp.shape(leaf.value)
        found[i] = OwnedLeaf(leaf.path, whole, leaf.view, leaf.axis, tuple(pieces))
    stacks = [
        dataclasses.replace(stack, radii=tuple(column))
        for (stack, _), column in zip(numbers, radii, strict=True)
    ]
    in_place = tuple(found[i] for i in range(len(leaves)))
    return Ownership(num_owners, in_place, tuple(stacks))


def _server_compressor(
    rules: Compressor | Rules | None, leaf: Leaf, shape: tuple[int, int]
) -> Compressor:
    if rules is not None:
        return choose(rules, leaf.path, shape)
    narrow = jnp.result_type(leaf.value).name == "bfloat16"
    return BFloat16() if narrow else Identity()


def _pieces(leaf: Leaf, num_blocks: int) -> list[Piece]:
    """The leaf's pieces, not yet in a stack."""
    norm = movable_norm(leaf)
    shape = jnp.shape(leaf.value)
    if math.prod(shape) >= 2**31:
        raise ValueError(
            f"the leaf {leaf.path!r} must have fewer than 2³¹ entries, got {shape}"
        )
    if 0 in shape:
        return []
    pieces = []
    for count, m, n in leaf.view.matrix_shapes(shape):
        axis = _block_axis(leaf, (m, n), num_blocks)
        blocks = 1 if axis is None else num_blocks
        core, _ = unscaled(norm, (m, n))
        piece = Piece((m, n), axis, blocks, flips=False, count=count * blocks)
        p, q = piece.member_shape
        pieces.append(dataclasses.replace(piece, flips=p > q and core.symmetric))
    return pieces


def _block_axis(leaf: Leaf, shape: tuple[int, int], num_blocks: int) -> int | None:
    """The axis along which a matrix is cut into blocks; None leaves it whole."""
    norm = leaf.layer.norm
    assert norm is not None
    core, _ = unscaled(norm, shape)
    adaptive = isinstance(leaf.layer.radius, AdaptiveRadius)
    large = num_blocks > 1 and math.prod(shape) >= MIN_BLOCK * num_blocks
    if adaptive or not large or not core.separable:
        return None
    return max(core.separable, key=lambda axis: shape[axis])


@dataclasses.dataclass(frozen=True)
class _Quotient:
    """A schedule divided by a number; two of them compare by both."""

    schedule: optax.Schedule
    divisor: float

    def __call__(self, count: Any) -> Any:
        return self.schedule(count) / self.divisor


def _geometry(leaf: Leaf, shape: tuple[int, int]) -> tuple[Norm, tuple[Any, ...]]:
    """The norm without its scale, and the radius in units of it.

    A radius t of c‖·‖ is one of t/c of ‖·‖; Gluon's, 1/(L⁰/‖g‖⋆ + L¹), goes with
    L⁰c² and L¹c.
    """
    assert leaf.layer.norm is not None
    norm, c = unscaled(leaf.layer.norm, shape)
    radius = leaf.layer.radius
    if isinstance(radius, AdaptiveRadius):
        return norm, (radius.l0 * c**2, radius.l1 * c)
    return norm, (_Quotient(radius, c) if callable(radius) else radius / c,)
