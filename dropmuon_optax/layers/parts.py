"""The part of a tree, and of an optimizer's state, that an active set moves.

An active set says of each layer whether it moves. A leaf moves with its layer; of a
leaf that is `Stacked` over layers, some may move. What does not move is masked out by
`optax.MaskedNode`, which keeps its place in the tree and holds nothing, or cut off.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from dropmuon_optax import checks
from dropmuon_optax.layers.leaves import LayersFn, join
from dropmuon_optax.meshes import like


@dataclasses.dataclass(frozen=True)
class Part:
    """What moves of a leaf.

    Attributes:
      moves: whether each of its layers does; mostly just one, none of an empty
        stack.
      axis: the axis over layers of a leaf that has several.
    """

    moves: tuple[bool, ...]
    axis: int = 0

    @property
    def any(self) -> bool:
        """Whether something of the leaf moves."""
        return any(self.moves)

    @property
    def all(self) -> bool:
        """Whether all of the leaf moves."""
        return all(self.moves)

    @property
    def complement(self) -> "Part":
        """What does not move of the leaf."""
        return dataclasses.replace(self, moves=tuple(not move for move in self.moves))

    def cut(self, x: Any) -> Any:
        """What moves of the leaf, along its axis."""
        return x if self.all else x[self._index()]

    def cut_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of that."""
        if self.all:
            return shape
        return (*shape[: self.axis], sum(self.moves), *shape[self.axis + 1 :])

    def insert(self, x: Any, moved: Any) -> Any:
        """`x` with what moves of it replaced, in the dtype of `x` if it is a part."""
        if self.all:
            return moved
        # Zeros may lie on no mesh where what moves lies on an Explicit one.
        return like(x, moved).at[self._index()].set(cast(moved, x))

    def mask(self, ndim: int) -> np.ndarray:
        """Whether each entry moves, for a leaf of `ndim` axes to broadcast with."""
        shape = [1] * ndim
        shape[self.axis] = len(self.moves)
        return np.array(self.moves).reshape(shape)

    def _index(self) -> Any:
        """What indexes the layers that move: a slice where they lie together."""
        moving = [(start, stop) for start, stop, moves in runs(self.moves) if moves]
        of_axis = slice(*moving[0]) if len(moving) == 1 else np.flatnonzero(self.moves)
        return (*[slice(None)] * self.axis, of_axis)


WHOLE = Part((True,))
Active = tuple[bool, ...]  # whether each of b layers moves
Owners = dict[Any, Part]  # what moves of a state's leaf, by its path


class TakesActive(optax.GradientTransformationExtraArgs):
    """A transformation whose `update` takes `active` and sees to it by itself."""


class Placement(NamedTuple):
    """Which layers the leaves of a tree belong to."""

    num_layers: int
    indices: list[range]  # of each leaf, in flattening order
    axes: list[int]  # of each leaf: over its layers

    def parts(self, active: Sequence[bool]) -> list[Part]:
        """What moves of each leaf."""
        return [
            Part(tuple(active[i] for i in leaf), axis)
            for leaf, axis in zip(self.indices, self.axes, strict=True)
        ]


def place(layers: LayersFn, params: Any, num_layers: int | None = None) -> Placement:
    """Which layers the leaves of `params` belong to, and how many layers there are.

    Args:
      layers: a function from the parameters to a tree of `Layer`s.
      params: the parameters, or any tree of their structure and shapes.
      num_layers: b where the tree holds only some of the layers; None counts them.

    Raises:
      ValueError: if a leaf's layer has no index, the indices have a gap (unless leaves
        are masked out), there are more than `num_layers`, or none at all.
    """
    indices, axes, leaves = [], [], join(layers, params)
    for leaf in leaves:
        if leaf.start is None:
            raise ValueError(
                f"the leaf {leaf.path!r} must have a layer with an index to be dropped "
                f"or kept (`layers_by_path` needs an `order`), got {leaf.layer}"
            )
        indices.append(range(leaf.start, leaf.start + leaf.num_layers))
        axes.append(leaf.axis or 0)
    found = {index for leaf in indices for index in leaf}
    count = max(found, default=-1) + 1
    nodes = jax.tree.leaves(params, is_leaf=_is_masked)
    if len(found) < count and num_layers is None and not any(map(_is_masked, nodes)):
        missing = sorted(set(range(count)) - found)
        raise ValueError(
            f"layer indices must be 0, 1, … without a gap, got none of {missing}"
        )
    if leaves and not found and num_layers is None:
        raise ValueError(
            f"there must be a layer, got leaves that are stacked over none, such as "
            f"{leaves[0].path!r} of shape {np.shape(leaves[0].value)}"
        )
    if num_layers is not None:
        checks.positive_int("num_layers", num_layers)
        if num_layers < count:
            raise ValueError(
                f"`num_layers` must be at least the {count} layers of the tree, "
                f"got {num_layers}"
            )
    return Placement(num_layers or count, indices, axes)


def check_active(active: Any, num_layers: int, empty: bool = False) -> Active:
    """`active` as a tuple of b bools.

    Args:
      active: whether each layer moves, as `active_layers` returns it.
      num_layers: the number of layers b.
      empty: whether it is allowed that nothing moves.

    Raises:
      ValueError: if it is anything else.

    >>> check_active((False, False), 2)
    Traceback (most recent call last):
    ...
    ValueError: `active` must have at least one layer that moves, got (False, False)
    """
    if not isinstance(active, tuple | list) or not all(
        isinstance(entry, bool | np.bool_) for entry in active
    ):
        raise ValueError(
            "`active` must be a tuple of bools that is static under jit "
            f'(static_argnames="active"), got {active!r}'
        )
    if len(active) != num_layers:
        raise ValueError(
            f"`active` must have one bool for each of {num_layers} layers, "
            f"got {len(active)}: {active!r}"
        )
    if not empty and not any(active):
        raise ValueError(
            f"`active` must have at least one layer that moves, got {active!r}"
        )
    return tuple(map(bool, active))


def narrow(tree: Any, parts: list[Part]) -> Any:
    """The tree with what does not move masked out or, in stacked leaves, cut off."""
    flat, structure = jax.tree.flatten(tree)
    cut = [
        part.cut(x) if part.any else optax.MaskedNode()
        for x, part in zip(flat, parts, strict=True)
    ]
    return jax.tree.unflatten(structure, cut)


def widen(whole: Any, moved: Any, parts: list[Part]) -> Any:
    """The inverse of `narrow`: what moved in its places, `whole` everywhere else."""
    rest = iter(jax.tree.leaves(moved))
    flat, structure = jax.tree.flatten(whole)
    merged = [
        part.insert(x, next(rest)) if part.any else x
        for x, part in zip(flat, parts, strict=True)
    ]
    return jax.tree.unflatten(structure, merged)


def narrow_state(
    init: Callable[[Any], Any], params: Any, state: Any, parts: list[Part]
) -> tuple[Any, Owners]:
    """The state that `init` would have had of `narrow(params, parts)`.

    What moves of the state is found by running `init` on shapes: its leaves that vanish
    when parameters are masked out, or become shorter when they do, are theirs.

    Args:
      init: the `init` of an Optax transformation that may be wrapped by `optax.masked`.
      params: the parameters, or a tree of their structure and shapes.
      state: the state that goes with all of `params`.
      parts: what moves of each leaf of the parameters.

    Returns:
      The narrow state; and the paths of its leaves, with their parts.

    Raises:
      ValueError: if a leaf of the state has parts of several parameters in it.
    """
    whole = dict(jax.tree_util.tree_flatten_with_path(state)[0])
    shapes = jax.eval_shape(init, _narrow_shapes(params, parts))
    flat, structure = jax.tree_util.tree_flatten_with_path(shapes)
    owners: Owners = {path: WHOLE for path, _ in flat}
    for part in {part for part in parts if part.any and not part.all}:
        alone = [p if p == part else WHOLE for p in parts]
        cut = jax.eval_shape(init, _narrow_shapes(params, alone))
        for path, x in jax.tree_util.tree_flatten_with_path(cut)[0]:
            if path in owners and x.shape != whole[path].shape:
                owners[path] = _along(part, whole[path].shape, x.shape)
    for path, x in flat:
        if path not in whole or x.shape != owners[path].cut_shape(whole[path].shape):
            raise ValueError(
                "`inner` must keep the state of each parameter in leaves of their own, "
                f"got {jax.tree_util.keystr(path)}, of shape {x.shape} without the "
                "layers that don't move"
            )
    moved = [part.cut(whole[path]) for path, part in owners.items()]
    return jax.tree.unflatten(structure, moved), owners


def widen_state(state: Any, moved: Any, owners: Owners) -> Any:
    """The inverse of `narrow_state`, for the leaves in `owners`; dtypes stay."""
    found = dict(jax.tree_util.tree_flatten_with_path(moved)[0])
    flat, structure = jax.tree_util.tree_flatten_with_path(state)
    merged = [
        cast(owners[path].insert(x, found[path]), x) if path in owners else x
        for path, x in flat
    ]
    return jax.tree.unflatten(structure, merged)


def cast(x: Any, like: Any) -> Any:
    """`x` in the dtype of `like`."""
    return x if x.dtype == like.dtype else x.astype(like.dtype)


def runs(active: Sequence[Any]) -> list[tuple[int, int, Any]]:
    """The maximal runs of equal entries, as (start, stop, entry).

    >>> runs((False, False, True))
    [(0, 2, False), (2, 3, True)]
    """
    edges = [i for i in range(1, len(active)) if active[i] != active[i - 1]]
    bounds = [0, *edges, len(active)]
    return [(a, b, active[a]) for a, b in itertools.pairwise(bounds)]


def _along(part: Part, shape: tuple[int, ...], cut: tuple[int, ...]) -> Part:
    """The part along the axis in which the cut shape differs, if it is just one.

    A state's leaf may lack axes of its parameter, as factored second moments do.
    """
    if len(shape) == len(cut):
        differ = [i for i, (a, b) in enumerate(zip(shape, cut, strict=True)) if a != b]
        if len(differ) == 1:
            return dataclasses.replace(part, axis=differ[0])
    return part


def _narrow_shapes(params: Any, parts: list[Part]) -> Any:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    flat, structure = jax.tree.flatten(shapes)
    cut = [
        jax.ShapeDtypeStruct(part.cut_shape(x.shape), x.dtype)
        if part.any
        else optax.MaskedNode()
        for x, part in zip(flat, parts, strict=True)
    ]
    return jax.tree.unflatten(structure, cut)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
