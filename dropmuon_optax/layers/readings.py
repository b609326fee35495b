"""What a leaf is, read from its name and shape; and what settles the rest."""

import dataclasses
import functools
import re
from typing import Any, Literal

from dropmuon_optax.layers.layouts import Key, NameRule, Role
from dropmuon_optax.layers.names import NAME_RULES
from dropmuon_optax.layers.views import SCALAR, VECTOR, View
from dropmuon_optax.norms import Norm
from dropmuon_optax.nouns import Noun

# A kernel's extents in space are at most this: patches of 32 are the largest in use.
MAX_EXTENT = 32
MAX_UNNAMED_EXTENT = 11  # without a name that says so, unless it reads an image
MAX_IMAGE_CHANNELS = 4

# Depthwise kernels have as many output channels as the layer before; first layers over
# images of one channel rarely have more than 32.
MIN_DEPTHWISE = 64


@dataclasses.dataclass(frozen=True, repr=False)
class Reading(Noun):
    """What a leaf is.

    Attributes:
      role: hidden matrix, convolution, …; None where it can't be told.
      view: which axes are fan_in and fan_out; where it can't be told, the last axis is
        fan_out.
      evidence: what says so: its name (`NAME_RULES`), its shape, or nothing much.
      why: in words.
      spatial: a convolution's extents in space.
    """

    role: Role | None
    view: View
    evidence: Literal["name", "shape", "guess"]
    why: str
    spatial: tuple[int, ...] = ()


@functools.lru_cache(maxsize=2**14)
def read(path: str, shape: tuple[int, ...], *, attribute: bool = False) -> Reading:
    """What a leaf is, by its path and shape.

    The first rule of `NAME_RULES` that matches counts. Without one, leaves of one axis
    are vectors, of two are matrices, and kernels of four or five are convolutions if
    the spatial extents are small where the library puts them: first in Flax, last in
    Equinox. Three axes without a name can't be told: heads, experts, stacked layers and
    one-dimensional convolutions all look alike.

    Args:
      path: the leaf's path, keys joined by "/".
      shape: the leaf's shape, without an axis that `Stacked` layers run along.
      attribute: whether the path's last key is a class attribute, not a dictionary key:
        so Equinox modules store `weight`, (fan_out, fan_in, …).

    Examples:
      >>> read("patch_embed/kernel", (7, 7, 3, 64)).spatial
      (7, 7)
      >>> read("attn/attn_vec_einsum/w", (8, 16, 64)).view
      View((0, 1), (2,))
      >>> read("w", (8, 16, 64)).role is None
      True
    """
    key = Key(path, shape, attribute)
    if len(shape) <= 1:
        return Reading("vector", VECTOR if shape else SCALAR, "shape", "one axis")
    for rule in NAME_RULES:
        match = rule.match(key)
        if match is not None:
            return _by_rule(key, rule, match[0])
    if len(shape) == 2:
        return _matrix(key)
    first = _fan_out_first(key)
    small = shape[2:] if first else shape[:-2]
    if path.rpartition("/")[2] in ("kernel", "weight") and _is_spatial(small):
        channels = shape[1] if first else shape[-2]
        if max(small) <= MAX_UNNAMED_EXTENT or channels <= MAX_IMAGE_CHANNELS:
            return _convolution(key, "shape", "small extents where kernels have them")
        why = "extents too large for most kernels: may be matrices at every place"
        return _convolution(key, "guess", why)
    if 0 in shape:  # nothing depends on what the axes are
        return Reading("hidden", _last(key), "shape", "no entries")
    return Reading(
        None, _last(key), "guess", f"nothing says what its {len(shape)} axes are"
    )


def _by_rule(key: Key, rule: NameRule, view: View | None) -> Reading:
    why = rule.doubt or rule.seen_in
    evidence = "guess" if rule.doubt else "name"
    if rule.role == "conv":
        return _convolution(key, evidence, why)
    if view and rule.role == "hidden" and _may_be_squares(key.shape, view):
        evidence, why = "guess", "may be a stack of square matrices, by its sides"
    if rule.role == "vector":
        return Reading("vector", view or VECTOR, evidence, why)
    if rule.role == "embedding":
        rows = View(tuple(range(len(key.shape) - 1)), (len(key.shape) - 1,))
        return Reading("embedding", view or rows, evidence, why)
    if rule.role in ("hidden", "head") and view is None and len(key.shape) == 2:
        matrix = _matrix(key)
        if matrix.evidence == "guess" and not rule.doubt:
            evidence, why = matrix.evidence, matrix.why
        return Reading(rule.role, matrix.view, evidence, why)
    return Reading(rule.role, view or _last(key), evidence, why)


def _may_be_squares(shape: tuple[int, ...], view: View) -> bool:
    """Whether what a view takes for one matrix of three axes may be many of two."""
    flat = len(view.fan_in) + len(view.fan_out) == len(shape) == 3
    return flat and shape[1] == shape[2]


def _matrix(key: Key) -> Reading:
    """A leaf of two axes."""
    m, n = key.shape
    if not key.attribute and key.path.rpartition("/")[2] == "weight" and m != n:
        why = "may be (fan_out, fan_in), as PyTorch stores a `weight`"
        return Reading("hidden", _last(key), "guess", why)
    return Reading("hidden", _last(key), "shape", "two axes")


def _convolution(key: Key, evidence: Any, why: str) -> Reading:
    """A convolution, dense or depthwise."""
    first = _fan_out_first(key)
    shape = key.shape
    spatial = shape[2:] if first else shape[:-2]
    fan_in, fan_out = (shape[1], shape[0]) if first else shape[-2:]
    role: Role = "conv"
    if fan_in == 1 and not _is_first(key.path):
        nested = len(_modules(key.path)) > 1
        if nested and fan_out >= MIN_DEPTHWISE:
            role = "depthwise"
            why = "one input channel: may be a first layer's, not depthwise"
        else:
            why = "one input channel: may be depthwise"
        evidence = "guess"
    return Reading(role, _last(key), evidence, why, spatial)


def _is_first(path: str) -> bool:
    """Whether the name says that the convolution is a network's first."""
    modules = _modules(path)
    names = ("conv", "Conv_0", "conv_0", "conv0", "conv1", "conv_1", "conv_in")
    more = ("conv_init", "conv_first", "stem", "conv_stem", "patch_embed")
    return len(modules) == 1 and modules[0] in (*names, *more)


def _modules(path: str) -> list[str]:
    """The keys of the modules around a leaf, without numbers alone and `params`."""
    keys = path.split("/")[:-1]
    return [key for key in keys if not key.isdigit() and key not in ("params", "~")]


def _fan_out_first(key: Key) -> bool:
    """Whether the leaf is stored (fan_out, fan_in, spatial…)."""
    if key.path.rpartition("/")[2] != "weight":
        return False
    if key.attribute:
        return True
    # A dictionary's `weight` of a convolution may be PyTorch's or Flax's.
    return len(key.shape) > 2 and _unlikely(key.shape[2:]) < _unlikely(key.shape[:-2])


def _unlikely(extents: tuple[int, ...]) -> tuple[bool, int, int]:
    """How little the extents look like those of kernels: small, and square or flat."""
    large = max(extents)
    return large > MAX_EXTENT, len({*extents} - {1}), large


def _is_spatial(extents: tuple[int, ...]) -> bool:
    return 2 <= len(extents) <= 3 and _unlikely(extents) <= (False, 1, MAX_EXTENT)


def _last(key: Key) -> View:
    """Fan_out is the last axis, or the first where it is stored so."""
    ndim = len(key.shape)
    if _fan_out_first(key):
        return View(tuple(range(1, ndim)), (0,))
    return View(tuple(range(ndim - 1)), (ndim - 1,))


class AmbiguousError(ValueError):
    """A leaf that can't be read by its name and shape.

    Attributes:
      leaf: its path and shape.
      rule: of `layers_by_path`, one that would settle what it is.
      geometry: the name of the geometry that met it.
    """

    def __init__(
        self, path: str, shape: Any, view: View, norm: Norm, radius: Any, geometry: str
    ):
        out_first = view.fan_out == (0,)
        likely = View((-1,), (-2,)) if out_first else View((-2,), (-1,))
        self.leaf = f"{path!r} of shape {shape}"
        self.rule = (
            f"# {_views(shape, likely)}\n    {rule_for(path, norm, radius, likely)}"
        )
        self.geometry = geometry
        super().__init__(how_to_settle([self.leaf], [self.rule], geometry))


def refuse_ambiguous(found: list[AmbiguousError]) -> None:
    """Raises one error for all of them, if there are any."""
    if found:
        leaves, rules = [e.leaf for e in found], [e.rule for e in found]
        raise ValueError(how_to_settle(leaves, rules, found[0].geometry))


def how_to_settle(leaves: list[str], rules: list[str], geometry: str = "") -> str:
    """What is wrong, and the code that settles it."""
    return (
        "leaves must be told by name or shape, or have a rule with a view in "
        f"`layers_by_path` (or be `stacked`), got {'; '.join(leaves)}. Write\n"
        "dm.layers_by_path(None, [\n"
        + "".join(f"    {rule}\n" for rule in rules)
        + (f"    dm.{geometry},\n])" if geometry else "    *rules,\n])")
    )


def rule_for(path: str, norm: Norm | None, radius: Any, view: View) -> str:
    """The rule of `layers_by_path` that says so of a leaf.

    >>> rule_for("mlp/w", None, 1.0, View((0,), (1,)))
    '("^mlp/w$", None, 1.0, dm.View((0,), (1,))),'
    """
    escaped = re.escape(path)
    raw = "r" if "\\" in escaped else ""
    name = "None" if norm is None else f"dm.norms.{norm!r}"
    return f'({raw}"^{escaped}$", {name}, {radius}, dm.{view!r}),'


def _views(shape: tuple[int, ...], likely: View) -> str:
    """What the view may be and what it makes of the leaf, the likely one first."""
    ndim = len(shape)
    views = [
        likely,
        View(tuple(range(ndim - 1)), (ndim - 1,)),
        View((0,), tuple(range(1, ndim))),
        View(tuple(range(1, ndim)), (0,)),
        View((-2,), (*range(ndim - 2), -1)),
    ]
    told = []
    for view in views:
        count, m, n = view.matrix_shape(shape)
        told.append(f"dm.{view!r}: {count} × ({m}, {n})")
    return "\n    # or ".join(told)
