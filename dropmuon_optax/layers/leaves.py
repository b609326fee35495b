"""One leaf of a tree of parameters and what it is: its layer, norm, radius and view."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dropmuon_optax import checks
from dropmuon_optax.layers import scans
from dropmuon_optax.layers.modules import check_params
from dropmuon_optax.layers.readings import Reading, read
from dropmuon_optax.layers.views import View
from dropmuon_optax.norms import Norm
from dropmuon_optax.nouns import Noun

LayersFn = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, repr=False)
class AdaptiveRadius(Noun):
    """Gluon's adaptive radius t = ‖g‖⋆/(L⁰ + L¹‖g‖⋆), for deterministic gradients.

    The dual norm is taken where the oracle attains it, ‖g‖⋆ = −⟨g, lmo(g)⟩, so it costs
    no more than an inner product (and is as exact as the oracle).

    Attributes:
      l0: L⁰, smoothness at a vanishing gradient, in units of ‖g‖⋆ per ‖x‖; at least 0.
      l1: L¹, its growth with ‖g‖⋆, in units of 1/‖x‖; at least 0, not both 0.

    Raises:
      ValueError: if one is negative or not finite, or both are 0.

    References:
      Riabinin et al., Gluon, arXiv:2505.13416, Theorem 1.
    """

    l0: float
    l1: float

    def __post_init__(self) -> None:
        checks.in_range("l0", self.l0, 0.0, math.inf, open_high=True)
        checks.in_range("l1", self.l1, 0.0, math.inf, open_high=True)
        if checks.is_concrete(self.l0) and self.l0 == self.l1 == 0:
            raise ValueError("`l0` and `l1` must not both be 0, got 0 and 0")


Radius = float | AdaptiveRadius | optax.Schedule


@dataclasses.dataclass(frozen=True, repr=False)
class Layer(Noun):
    """What one leaf is: the layer it belongs to and how an oracle moves it.

    Attributes:
      index: the layer's position counted from the input, from 0; None where the order
        of layers means nothing. Leaves of one layer (kernel and bias) share it.
      norm: the norm ‖·‖_(i); None for a leaf that no oracle moves.
      radius: the step's length in the norm is learning_rate·radius; a number, a
        schedule of the step count k, or an `AdaptiveRadius`.
      view: which axes are rows and columns; None is what `read` makes of the name.

    Raises:
      ValueError: if an attribute is out of range.
    """

    index: int | None
    norm: Norm | None
    radius: Radius = 1.0
    view: View | None = None

    def __post_init__(self) -> None:
        _check_layer("index", self.index, self.norm, self.radius)


@dataclasses.dataclass(frozen=True, repr=False)
class Stacked(Noun):
    """A leaf with an axis over layers: leaf[j] belongs to layer start + j.

    So `nn.scan` and `jax.lax.scan` over blocks lay out their parameters, mostly along
    axis 0; leaf[j] stands for slice j along the axis.

    Attributes:
      start: the index of the first of them.
      norm: as in `Layer`, for each leaf[j].
      radius: as in `Layer`, for each leaf[j].
      view: as in `Layer`, for each leaf[j].
      length: how many layers; None where the leaf's shape is to tell, as it must under
        `drop_layers`, which shows a part of the leaf.
      axis: the axis over layers; negative ones count from the end.

    Raises:
      ValueError: if an attribute is out of range.
    """

    start: int | None
    norm: Norm | None
    radius: Radius = 1.0
    view: View | None = None
    length: int | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        _check_layer("start", self.start, self.norm, self.radius)
        if self.length is not None:
            checks.positive_int("length", self.length)
        if not isinstance(self.axis, int) or isinstance(self.axis, bool):
            raise ValueError(f"`axis` must be a whole number, got {self.axis!r}")


def _check_layer(name: str, index: Any, norm: Any, radius: Any) -> None:
    whole = isinstance(index, int) and not isinstance(index, bool) and index >= 0
    if index is not None and not whole:
        raise ValueError(f"`{name}` must be None or a whole number ≥ 0, got {index!r}")
    if norm is not None and not isinstance(norm, Norm):
        raise ValueError(f"`norm` must be None or a norm, got {norm!r}")
    if not isinstance(radius, AdaptiveRadius):
        checks.in_range("radius", radius, 0.0, math.inf, open_high=True, schedule=True)


class Leaf(NamedTuple):
    """One leaf of a tree of parameters beside its layer."""

    path: str
    value: Any
    layer: Layer | Stacked
    view: View  # of the whole leaf; matrices of one `Stacked` layer lie together
    axis: int | None = None  # over layers; None if it is one layer's
    reading: Reading | None = None  # where the layer has no view of its own

    @property
    def num_layers(self) -> int:
        """Over how many layers the leaf is stacked; 1 if it isn't."""
        return 1 if self.axis is None else jnp.shape(self.value)[self.axis]

    @property
    def start(self) -> int | None:
        """The index of its first layer, or of its only one."""
        layer = self.layer
        return layer.start if isinstance(layer, Stacked) else layer.index


def path_of(keys: Sequence[Any]) -> str:
    """A leaf's path: its keys joined by "/", without nnx's trailing `.value`.

    >>> path_of((jax.tree_util.DictKey("blocks_3"), jax.tree_util.SequenceKey(0)))
    'blocks_3/0'
    """
    return jax.tree_util.keystr(_without_value(keys), simple=True, separator="/")


def read_keys(keys: Sequence[Any], shape: tuple[int, ...]) -> Reading:
    """`read` of the leaf at these keys."""
    attribute = any(map(_is_attribute, _without_value(keys)[-1:]))
    return read(path_of(keys), shape, attribute=attribute)


def _without_value(keys: Sequence[Any]) -> tuple[Any, ...]:
    variable = len(keys) > 1 and _is_attribute(keys[-1]) and keys[-1].name == "value"
    return tuple(keys[:-1] if variable else keys)


def _is_attribute(key: Any) -> bool:
    return isinstance(key, jax.tree_util.GetAttrKey)


def join(layers: LayersFn, params: Any) -> list[Leaf]:
    """Every leaf of `params` beside its layer, in flattening order.

    Raises:
      ValueError: if `layers` isn't a function that returns a tree of layers with the
        structure of `params`; if what is no parameter is among these.
    """
    check_params(params)
    tree = checks.is_function("layers", layers)(params)
    flat, structure = jax.tree_util.tree_flatten_with_path(params)
    found, other = jax.tree.flatten(tree)
    if structure != other:
        raise ValueError(
            "`layers` must return a tree of the parameters' structure, "
            f"got {other} for {structure}"
        )
    leaves = []
    for (keys, value), layer in zip(flat, found, strict=True):
        path = path_of(keys)
        if not isinstance(layer, Layer | Stacked):
            raise ValueError(
                f"`layers` must return a `Layer` for {path!r}, got {layer!r}"
            )
        axis = _stack_axis(path, jnp.shape(value), layer)
        view, reading = _view(keys, jnp.shape(value), layer, axis)
        leaves.append(Leaf(path, value, layer, view, axis, reading))
    return leaves


def _stack_axis(
    path: str, shape: tuple[int, ...], layer: Layer | Stacked
) -> int | None:
    if not isinstance(layer, Stacked):
        return None
    ndim, axis = len(shape), layer.axis
    if not -ndim <= axis < ndim or layer.length not in (None, shape[axis]):
        which = "a leading axis" if axis == 0 else f"an axis {axis}"
        length = "" if layer.length is None else f" of length {layer.length}"
        raise ValueError(
            f"the leaf {path!r} must have {which}{length} to be {layer}, "
            f"got shape {shape}"
        )
    return axis % ndim


def _view(
    keys: Sequence[Any],
    shape: tuple[int, ...],
    layer: Layer | Stacked,
    axis: int | None,
) -> tuple[View, Reading | None]:
    """The view of the whole leaf: the given or default one, over the stack's axis."""
    of_one = scans.without(shape, axis)
    reading = read_keys(keys, of_one) if layer.view is None else None
    view = layer.view if reading is None else reading.view
    assert view is not None
    try:
        view.matrix_shapes(of_one)
    except ValueError as error:
        what = "the leaf" if axis is None else "each layer of the leaf"
        raise ValueError(
            f"{what} {path_of(keys)!r} of shape {of_one}: {error}"
        ) from None
    return view if axis is None else view.over(axis, len(shape)), reading


def movable_norm(leaf: Leaf) -> Norm:
    """The norm of a leaf that an oracle can move.

    Raises:
      ValueError: naming the leaf, if it has none, or can't hold a step of its radius.
    """
    if leaf.layer.norm is None:
        raise ValueError(
            f"the leaf {leaf.path!r} must have a norm to be moved by an oracle, "
            "got norm=None; send it elsewhere, with `optax.partition` or `muon`"
        )
    checks.is_inexact(leaf.path, leaf.value, jnp.floating)
    dtype, name = leaf.value.dtype, f"the radius of {leaf.path!r}"
    for shape in leaf.view.matrix_shapes(jnp.shape(leaf.value)):
        leaf.layer.norm.check_radius(leaf.layer.radius, shape, dtype, name)
    return leaf.layer.norm


def count_layers(tree: Any, params: Any = None) -> int:
    """The number of layers b.

    Args:
      tree: a tree of `Layer`s, such as `layers(params)`.
      params: the parameters; needed only where a `Stacked` without `length` is last.

    Returns:
      b: the indices found are 0, …, b − 1.

    Raises:
      ValueError: if a leaf has no index, or if the indices have a gap.

    Examples:
      >>> count_layers({"head": Layer(1, None), "embed": Layer(0, None)})
      2
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    shapes = [None] * len(flat) if params is None else jax.tree.leaves(params)
    found: dict[int, str] = {}
    for (keys, layer), value in zip(flat, shapes, strict=True):
        for index in _indices(layer, value, path_of(keys)):
            found.setdefault(index, path_of(keys))
    missing = sorted(set(range(max(found, default=0))) - set(found))
    if missing:
        last = max(found)
        raise ValueError(
            f"layer indices must be 0, 1, … without a gap, got {last} for "
            f"{found[last]!r} but no leaf for {missing}"
        )
    return len(found)


def _indices(layer: Any, value: Any, path: str) -> Iterable[int]:
    if isinstance(layer, Stacked) and layer.start is not None:
        length = layer.length if value is None else jnp.shape(value)[layer.axis]
        if length is None:
            raise ValueError(
                f"the layer of {path!r} must have a `length`, or give `params` to "
                f"`count_layers`, got {layer}"
            )
        return range(layer.start, layer.start + length)
    if not isinstance(layer, Layer) or layer.index is None:
        raise ValueError(
            f"the leaf {path!r} must have a layer with an index, got {layer}"
        )
    return (layer.index,)
