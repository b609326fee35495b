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
from dropmuon_optax.lmo import unscaled_geometry
from dropmuon_optax.norms import Norm, unscaled
from dropmuon_optax.wire.pieces import OwnedLeaf, Piece

MIN_BLOCK = 4096  # entries; a smaller block isn't worth its place in a stack


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
        for count, m, n in _matrices(leaf):
            worker = choose(worker_compressor, leaf.path, (m, n))
            server = _server_compressor(server_compressor, leaf, (m, n))
            symmetric = worker.symmetric and server.symmetric
            piece = _piece(leaf, (count, m, n), num_blocks, symmetric)
            shape = piece.member_shape
            worker.check(shape, leaf.path)
            server.check(shape, leaf.path)
            norm, columns = unscaled_geometry(leaf.layer, (m, n))
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


def _matrices(leaf: Leaf) -> list[tuple[int, int, int]]:
    """(number of matrices, fan_in, fan_out) of each of the leaf's pieces."""
    movable_norm(leaf)
    shape = jnp.shape(leaf.value)
    if math.prod(shape) >= 2**31:
        raise ValueError(
            f"the leaf {leaf.path!r} must have fewer than 2³¹ entries, got {shape}"
        )
    return [] if 0 in shape else leaf.view.matrix_shapes(shape)


def _piece(
    leaf: Leaf, matrices: tuple[int, int, int], num_blocks: int, symmetric: bool
) -> Piece:
    """A piece of the leaf, not yet in a stack.

    Compressors that aren't `symmetric` see the leaf's own columns, each of them whole.
    """
    count, m, n = matrices
    axis = _block_axis(leaf, (m, n), num_blocks, (0, 1) if symmetric else (1,))
    blocks = 1 if axis is None else num_blocks
    core, _ = unscaled(movable_norm(leaf), (m, n))
    piece = Piece((m, n), axis, blocks, flips=False, count=count * blocks)
    p, q = piece.member_shape
    flips = p > q and core.symmetric and symmetric
    return dataclasses.replace(piece, flips=flips)


def _block_axis(
    leaf: Leaf, shape: tuple[int, int], num_blocks: int, allowed: tuple[int, ...]
) -> int | None:
    """The axis along which a matrix is cut into blocks; None leaves it whole."""
    norm = leaf.layer.norm
    assert norm is not None
    core, _ = unscaled(norm, shape)
    adaptive = isinstance(leaf.layer.radius, AdaptiveRadius)
    large = num_blocks > 1 and math.prod(shape) >= MIN_BLOCK * num_blocks
    axes = [axis for axis in core.separable if axis in allowed]
    if adaptive or not large or not axes:
        return None
    return max(axes, key=lambda axis: shape[axis])
