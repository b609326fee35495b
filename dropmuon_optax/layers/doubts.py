"""The lines of code that settle what a leaf's name and shape leave open."""

import re
from typing import Any

from dropmuon_optax.layers.views import View
from dropmuon_optax.norms import Norm


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
        self.rule = f"{line(path, norm, radius, likely)}  # {_views(shape, likely)}"
        self.geometry = geometry
        super().__init__(message([self.leaf], [self.rule], geometry))


def refuse(found: list[AmbiguousError]) -> None:
    """Raises one error for all of them, if there are any."""
    if found:
        leaves, rules = [e.leaf for e in found], [e.rule for e in found]
        raise ValueError(message(leaves, rules, found[0].geometry))


def message(leaves: list[str], rules: list[str], geometry: str = "") -> str:
    """What is wrong, and the code that settles it."""
    return (
        "leaves must be told by name or shape, or have a rule with a view in "
        f"`layers_by_path`, got {'; '.join(leaves)}. Write\n"
        "dm.layers_by_path(None, [\n"
        + "".join(f"    {rule}\n" for rule in rules)
        + (f"    dm.{geometry},\n])" if geometry else "    *rules,\n])")
    )


def line(path: str, norm: Norm | None, radius: Any, view: View) -> str:
    """The rule of `layers_by_path` that says so of a leaf.

    >>> line("mlp/w", None, 1.0, View((0,), (1,)))
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
        told.append(f"{count} × ({m}, {n})" + f" by dm.{view!r}" * (view != likely))
    return ", or ".join(told)
