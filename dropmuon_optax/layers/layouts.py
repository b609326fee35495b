"""How a library names a leaf, and how it lays out its axes: one letter an axis.

`"CHD: C→HD"` is a leaf of three axes, rows C and columns H·D; axes on neither side of
the arrow count matrices. A digit is an axis of that extent. A condition may follow:
`"HDC: HD→C, 8C≥HD"` holds only for leaves whose 8·C is at least H·D.
"""

import dataclasses
import math
import re
from typing import Literal, NamedTuple

from dropmuon_optax.layers.views import View
from dropmuon_optax.nouns import Noun

_LAYOUT = re.compile(r"(\w+): (\w*)→(\w+)((?:, \w+≥\w+)*)")
_SIDE = re.compile(r"(\d*)([A-Z]*)")

Role = Literal["hidden", "conv", "depthwise", "vector", "embedding", "head"]


class Key(NamedTuple):
    """A leaf as the rules see it."""

    path: str
    shape: tuple[int, ...]
    attribute: bool = False  # of a class, as in Equinox modules; not a dictionary's key


@dataclasses.dataclass(frozen=True, repr=False)
class NameRule(Noun):
    """What a leaf is if its path ends so.

    Attributes:
      pattern: a regular expression for whole keys at the path's end, or for all of it
        where it begins with "^"; case doesn't matter. "#" stands for a number or none,
        as in `Conv_0`, `conv1` and `conv/0`.
      role: what the leaf is.
      seen_in: who names and lays out leaves so.
      layouts: of which one has to fit the shape (`fit`), and gives the view;
        none: any shape, and the view is the role's.
      axes: how many axes the leaf may have; none: any number.
      attribute: whether the last key is to be an attribute; None: either.
      doubt: what else it may be, where the name doesn't settle it.
    """

    pattern: str
    role: Role
    seen_in: str
    layouts: tuple[str, ...] = ()
    axes: tuple[int, ...] = ()
    attribute: bool | None = None
    doubt: str = ""

    def match(self, key: Key) -> tuple[View | None] | None:
        """None if the rule doesn't fit the leaf, else its view (None: the role's).

        >>> NameRule("out/kernel", "hidden", "", ("HDC: HD→C",)).match(
        ...     Key("attn/out/kernel", (4, 16, 64))
        ... )
        (View((0, 1), (2,)),)
        """
        if self.axes and len(key.shape) not in self.axes:
            return None
        if self.attribute not in (None, key.attribute):
            return None
        pattern = self.pattern.replace("#", r"(?:_?\d+|/\d+)*")
        start = "" if pattern.startswith("^") else "(?:^|/)"
        if not re.search(f"{start}(?:{pattern})$", key.path, re.IGNORECASE):
            return None
        if not self.layouts:
            return (None,)
        views = [fit(layout, key.shape) for layout in self.layouts]
        return next(((view,) for view in views if view), None)


def fit(layout: str, shape: tuple[int, ...]) -> View | None:
    """The view that a layout gives a leaf of this shape; None where it doesn't fit.

    Args:
      layout: as above.
      shape: the leaf's shape.

    Raises:
      ValueError: if the layout isn't written as above.

    Examples:
      >>> fit("C3HD: C→HD", (64, 3, 4, 16)).matrix_shape((64, 3, 4, 16))
      (3, 64, 64)
      >>> fit("C3HD: C→HD", (64, 2, 4, 16)) is None
      True
    """
    parts = _LAYOUT.fullmatch(layout)
    if not parts:
        raise ValueError(f"`layout` must look like 'CHD: C→HD', got {layout!r}")
    axes, rows, columns, conditions = parts.groups()
    if len(axes) != len(shape):
        return None
    sizes = dict(zip(axes, shape, strict=True))
    if any(axis.isdigit() and sizes[axis] != int(axis) for axis in axes):
        return None
    for condition in conditions.split(", ")[1:]:
        more, less = condition.split("≥")
        if _product(more, sizes) < _product(less, sizes):
            return None
    return View(tuple(map(axes.index, rows)), tuple(map(axes.index, columns)))


def _product(side: str, sizes: dict[str, int]) -> int:
    parts = _SIDE.fullmatch(side)
    if not parts:
        raise ValueError(f"`layout` must compare products such as 8C, got {side!r}")
    return int(parts[1] or 1) * math.prod(sizes[axis] for axis in parts[2])
