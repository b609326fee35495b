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
from jaxtyping import Array, Float

from dropmuon_optax.compressors import BFloat16, Compressor, Identity
from dropmuon_optax.layers.leaves import (
    AdaptiveRadius,
    LayersFn,
    Leaf,
    Stacked,
    join,
    movable_norm,
)
from dropmuon_optax.layers.rules import Rules, choose
from dropmuon_optax.layers.views import View
from dropmuon_optax.lmo import unscaled_geometry
from dropmuon_optax.norms import Norm, unscaled

MIN_BLOCK = 4096  # entries; a smaller block isn't worth its place in a stack


@dataclasses.dataclass(frozen=True)
class Piece:
    """One leaf, and how it falls into members of a stack.

    Attributes:
      path: the leaf's path.
      shape: the leaf's shape.
      view: of the leaf, or of each row if it is stacked over layers.
      rows: over how many layers the leaf is stacked; 0 if it isn't.
      axis: the axis of the matrix that is cut into blocks; None if it isn't.
      blocks: the number of blocks.
      flips: whether the members are transposed, to lie in a stack with others.
      stack: the number of the stack.
      first: the place of its first member in the stack.
      count: the number of its members.
    """

    path: str
    shape: tuple[int, ...]
    view: View
    rows: int
    axis: int | None
    blocks: int
    flips: bool
    stack: int = 0
    first: int = 0
    count: int = 0

    def to_stack(self, x: Array) -> Float[Array, "k m n"]:
        """The leaf, or some rows of a stacked one, as matrices in float32."""
        x = x.astype(jnp.float32)
        if self.rows:
            matrices = jax.vmap(self.view.to_matrices)(x)
            matrices = matrices.reshape(-1, *matrices.shape[2:])
        else:
            matrices = self.view.to_matrices(x)
        if self.axis is not None:
            matrices = _cut(matrices, 1 + self.axis, self.blocks)
        return matrices.mT if self.flips else matrices

    def from_stack(self, stack: Float[Array, "k m n"]) -> Array:
        """The inverse of `to_stack`, in float32."""
        matrices = stack.mT if self.flips else stack
        shape = self.shape[1:] if self.rows else self.shape
        _, m, n = self.view.matrix_shape(shape)
        if self.axis is not None:
            matrices = _join(matrices, 1 + self.axis, self.blocks)[:, :m, :n]
        if not self.rows:
            return self.view.from_matrices(matrices, shape)
        batch = self.view.matrix_shape(shape)[0]
        parts = matrices.reshape(-1, batch, *matrices.shape[1:])
        return jax.vmap(lambda part: self.view.from_matrices(part, shape))(parts)


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
      radii: the radius of each member, (t,) or (L⁰, L¹).
    """

    shape: tuple[int, int]
    norm: Norm
    worker: Compressor
    server: Compressor
    radii: tuple[tuple[float, ...], ...] = ()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Ownership:
    """Every leaf's pieces, the stacks, and the number of owners n."""

    num_owners: int
    pieces: tuple[Piece, ...]
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
) -> Ownership:
    """The stacks of a tree of parameters, and who owns what.

    Args:
      layers: a function from the parameters to a tree of `Layer`s.
      params: the parameters, or any tree of their structure, shapes and dtypes.
      num_owners: n.
      num_blocks: how many blocks a large matrix whose oracle allows it is cut into.
      worker_compressor: a compressor, or a list of (regex, compressor).
      server_compressor: likewise; None is dense, in the parameters' dtype.

    Raises:
      ValueError: if a leaf has no norm, is no real floating-point array, or a
        compressor doesn't fit it; naming its path.
    """
    keys: dict[Any, int] = {}
    radii: list[list[tuple[float, ...]]] = []
    leaves = join(layers, params)
    order = sorted(range(len(leaves)), key=lambda i: (_index(leaves[i]), i))
    found: dict[int, Piece] = {}
    for i in order:
        piece, shape, batch = _piece(leaves[i], num_blocks)
        norm, columns = unscaled_geometry(leaves[i].layer, batch)
        dtype = jnp.result_type(leaves[i].value).name
        worker = choose(worker_compressor, piece.path, shape)
        server = BFloat16() if dtype == "bfloat16" else Identity()
        if server_compressor is not None:
            server = choose(server_compressor, piece.path, shape)
        key = Stack(shape, norm, worker, server), len(columns)
        number = keys.setdefault(key, len(keys))
        if number == len(radii):
            radii.append([])
        found[i] = dataclasses.replace(piece, stack=number, first=len(radii[number]))
        radii[number].extend([columns] * piece.count)
    pieces = [found[i] for i in range(len(leaves))]
    stacks = [
        dataclasses.replace(stack, radii=tuple(column))
        for (stack, _), column in zip(keys, radii, strict=True)
    ]
    return Ownership(num_owners, tuple(pieces), tuple(stacks))


def _index(leaf: Leaf) -> int:
    layer = leaf.layer
    start = layer.start if isinstance(layer, Stacked) else layer.index
    return start or 0


def _piece(leaf: Leaf, num_blocks: int) -> tuple[Piece, tuple[int, int], Any]:
    """The leaf's piece, the shape of its members, and that of its whole matrices."""
    norm = movable_norm(leaf)
    shape = jnp.shape(leaf.value)
    rows = shape[0] if isinstance(leaf.layer, Stacked) else 0
    batch, m, n = leaf.view.matrix_shape(shape[1:] if rows else shape)
    if batch * m * n * max(rows, 1) >= 2**31:
        raise ValueError(
            f"the leaf {leaf.path!r} must have fewer than 2³¹ entries, got {shape}"
        )
    axis = _block_axis(leaf, (m, n), num_blocks)
    whole = (m, n)
    blocks = 1 if axis is None else num_blocks
    if axis is not None:
        m, n = (-(-m // blocks), n) if axis == 0 else (m, -(-n // blocks))
    norm, _ = unscaled(norm, whole)
    flips = m > n and norm.symmetric
    piece = Piece(leaf.path, shape, leaf.view, rows, axis, blocks, flips)
    count = batch * max(rows, 1) * blocks
    return dataclasses.replace(piece, count=count), (n, m) if flips else (m, n), whole


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
