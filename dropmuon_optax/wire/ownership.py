"""Which matrices of a tree lie in which stack, and which worker owns which of them.

Matrices of one shape, norm and compressors form a stack. Those of all stacks are shared
out together (`balance`), so that the longest message sets what is sent, and not every
stack. Members go by layer, so that a suffix of layers is spread evenly too. A matrix
whose oracle works on blocks of rows or columns (embeddings and heads under the sign or
row norm) is cut into a block for every owner, or several, which fill the gaps.
"""

import dataclasses
import hashlib
import math
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
from dropmuon_optax.wire.balance import Lot, among_carriers, places, share_out
from dropmuon_optax.wire.pieces import OwnedLeaf, Piece

WORK_SHARE = 0.25  # of what owners are balanced by: the oracle's work, beside bytes
MIN_BLOCK = 4096  # entries; a smaller block isn't worth its place in a stack
BLOCKS_EACH = (1, 2, 4, 8)  # of a matrix that is cut, for each owner
WELL = 1.02  # shares that cost so many times the least are as good as it gets


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
    """Every leaf with its pieces, the stacks, and who of n owners owns what.

    Attributes:
      num_owners: n.
      leaves: every leaf with its pieces.
      stacks: the stacks.
      owners: of each stack, the owner of each of its members.
      parts: of each stack, in how many blocks of rows a matrix is sent.
      carriers: of each stack, who carries each block, those of a member together: the
        owner itself where a matrix is sent whole.
      work_ratio: the oracle's work on every owner, of the mean's: an owner with fewer
        matrices of a stack than others runs the oracle on zeros in their places.
    """

    num_owners: int
    leaves: tuple[OwnedLeaf, ...]
    stacks: tuple[Stack, ...]
    owners: tuple[tuple[int, ...], ...]
    parts: tuple[int, ...]
    carriers: tuple[tuple[int, ...], ...]
    work_ratio: float

    @property
    def name(self) -> str:
        """n, and a few letters that stand for who owns what."""
        shapes = [stack.shape for stack in self.stacks]
        text = repr((self.num_owners, shapes, self.owners))
        if max(self.parts, default=1) > 1:
            text += repr(self.parts)
        code = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.num_owners}_owners_{code}"

    @property
    def carried(self) -> "Ownership":
        """What is sent: blocks of rows as the members, and who carries them."""
        stacks = [
            dataclasses.replace(
                stack,
                shape=(stack.shape[0] // k, stack.shape[1]),
                radii=tuple(radius for radius in stack.radii for _ in range(k)),
            )
            for stack, k in zip(self.stacks, self.parts, strict=True)
        ]
        whole = (1,) * len(stacks)
        return dataclasses.replace(
            self, stacks=tuple(stacks), owners=self.carriers, parts=whole
        )

    def places(self, stack: int) -> np.ndarray:
        """Where each of the stack's members lies at its owner, int (members,)."""
        return places(self.owners[stack])

    def table(self, stack: int, members: list[int]) -> np.ndarray:
        """Members by owner, in order, int (n, t); −1 where an owner has fewer."""
        lists: list[list[int]] = [[] for _ in range(self.num_owners)]
        for member in members:
            lists[self.owners[stack][member]].append(member)
        width = max(map(len, lists))
        rows = [row + [-1] * (width - len(row)) for row in lists]
        return np.array(rows, np.int32).reshape(self.num_owners, width)


def own(
    layers: LayersFn,
    params: Any,
    num_owners: int,
    num_blocks: int,
    worker_compressor: Compressor | Rules,
    server_compressor: Compressor | Rules | None,
    weight_decay_mask: Any = None,
    work_share: float = WORK_SHARE,
    relays: bool = False,
) -> Ownership:
    """The stacks of a tree of parameters, and who owns what.

    Args:
      layers: a function from the parameters to a tree of `Layer`s.
      params: the parameters, or any tree of their structure, shapes and dtypes.
      num_owners: n.
      num_blocks: how many blocks a large matrix whose oracle allows it is cut into, or
        several times as many if messages would not be of one length otherwise.
      worker_compressor: a compressor, or a list of (regex, compressor).
      server_compressor: likewise; None is dense, in the parameters' dtype.
      weight_decay_mask: which leaves decay, as `masked_by` takes it.
      work_share: how much the oracle's work counts beside bytes, see `share_out`.
      relays: whether a matrix that is more than a worker's share of all bytes is sent
        in blocks of rows; `num_blocks` is the number of workers then.

    Raises:
      ValueError: if a leaf has no norm, is no real floating-point array, or a
        compressor doesn't fit it; naming its path.
    """
    rules = worker_compressor, server_compressor, weight_decay_mask
    leaves = join(layers, params)
    decays = jax.tree.leaves(masked_by(weight_decay_mask, params))
    best = None
    for each in BLOCKS_EACH if num_owners > 1 else (1,):
        owned, stacks = _stacks(leaves, decays, num_blocks * each, rules)
        lots = [_lot(stack) for stack in stacks]
        parts = _parts(stacks, lots, num_blocks) if relays else (1,) * len(stacks)
        sent = [lot.cut(k) for lot, k in zip(lots, parts, strict=True)]
        shares = share_out(sent, num_owners, work_share)
        if best is None or shares.score(work_share) < best[0].score(work_share) / WELL:
            best = shares, owned, stacks, lots, parts
        if best[0].score(work_share) <= WELL * best[0].least(work_share):
            break
    assert best is not None
    shares, owned, stacks, lots, parts = best
    owners, work_ratio = shares.owners, shares.work_ratio
    if max(parts, default=1) > 1:
        owners, work_ratio = among_carriers(lots, parts, owners, num_owners)
    return Ownership(
        num_owners, owned, stacks, owners, parts, shares.owners, work_ratio
    )


def _parts(
    stacks: tuple[Stack, ...], lots: list[Lot], num_workers: int
) -> tuple[int, ...]:
    """In how many blocks of rows the matrices of each stack are sent.

    The fewest that are equal and of no more than a worker's share of all bytes, if
    twice as many as that takes will do. Compressors that aren't symmetric see whole
    columns.
    """
    total = sum(lot.count * lot.num_bytes for lot in lots)
    parts = []
    for stack, lot in zip(stacks, lots, strict=True):
        least = -(-lot.num_bytes * num_workers // max(total, 1))
        fitting = [k for k in range(least, 2 * least + 1) if stack.shape[0] % k == 0]
        cuts = lot.work and stack.worker.symmetric and stack.server.symmetric
        parts.append(fitting[0] if fitting and cuts else 1)
    return tuple(parts)


def _lot(stack: Stack) -> Lot:
    """What owning the stack's members costs.

    An oracle that works on blocks costs next to nothing; others, products of matrices.
    """
    bits = stack.worker.num_bits(stack.shape) + stack.server.num_bits(stack.shape)
    work = 0 if stack.norm.separable else math.prod(stack.shape) * min(stack.shape)
    return Lot(len(stack.radii), bits // 8, work)


def _stacks(
    leaves: list[Leaf], decays: list[bool], num_blocks: int, rules: Any
) -> tuple[tuple[OwnedLeaf, ...], tuple[Stack, ...]]:
    """The leaves' members in stacks, matrices being cut into so many blocks."""
    numbers: dict[Any, int] = {}
    radii: list[list[tuple[Any, ...]]] = []
    order = sorted(range(len(leaves)), key=lambda i: (leaves[i].start or 0, i))
    found: dict[int, OwnedLeaf] = {}
    for i in order:
        leaf, pieces = leaves[i], []
        for count, m, n in _matrices(leaf):
            worker = choose(rules[0], leaf.path, (m, n))
            server = _server_compressor(rules[1], leaf, (m, n))
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
    return tuple(found[i] for i in range(len(leaves))), tuple(stacks)


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
