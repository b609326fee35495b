"""What goes where, printed; and what was guessed."""

from collections import Counter
from typing import Any

import jax.numpy as jnp

from dropmuon_optax.compressors import Compressor
from dropmuon_optax.layers.by_path import layers_by_path
from dropmuon_optax.layers.geometry import (
    ball_geometry,
    muon_geometry,
    scion_geometry,
)
from dropmuon_optax.layers.leaves import LayersFn, Leaf, join
from dropmuon_optax.layers.names import NAME_RULES
from dropmuon_optax.layers.readings import how_to_settle, rule_for
from dropmuon_optax.layers.rules import Rules, check_rules, choose

_DEFAULTS = {
    "muon": muon_geometry,
    "scion": ball_geometry,
    "gluon, and scion(constrained=False)": scion_geometry,
}


def describe(
    layers: LayersFn | None,
    params: Any,
    compressor: Compressor | Rules | None = None,
    *,
    strict: bool = False,
    evidence: bool = False,
) -> str:
    """Prints and returns what goes where: path, shape, layer, norm, radius, view.

    A last column says what was guessed of a leaf, if anything was: its name and shape
    admit another reading. A rule with a view settles it.

    Args:
      layers: a function from the parameters to a tree of `Layer`s; None is what each
        optimizer makes of `layers=None`, one table after the other.
      params: the parameters (or their `jax.ShapeDtypeStruct`s).
      compressor: as `ef21_muon` takes them; shows each leaf's compressor besides, and
        its payload as a share of the leaf in float32.
      strict: refuse what was guessed, for scripts.
      evidence: show what every leaf was read as, and why; and below, `NAME_RULES`, the
        names that mean something.

    Returns:
      The text that was printed, for a log or a test.

    Raises:
      ValueError: if `layers` or `compressor` doesn't fit the parameters; if `strict`
        and something was guessed, naming the leaves and the rules to write.

    Examples:
      >>> from dropmuon_optax import norms
      >>> layers = layers_by_path(None, [("", norms.MaxEntry(), 1.0)])
      >>> _ = describe(layers, {"w": jnp.ones((8, 4))})
      path  shape   layer  norm        radius  matrices
      w     (8, 4)  -      MaxEntry()  1.0     1 × (8, 4)
    """
    check_rules("compressor", compressor)
    text = ""
    if layers is None:
        for name, geometry in _DEFAULTS.items():
            layers = layers_by_path(None, geometry)
            table = _described(layers, params, compressor, strict, evidence)
            text += f"{name}\n{table}\n\n"
    else:
        text = _described(layers, params, compressor, strict, evidence)
    if evidence:
        names = [
            [rule.role, " | ".join(rule.layouts), rule.seen_in, rule.pattern]
            for rule in NAME_RULES
        ]
        text = (
            text.rstrip()
            + "\n\n"
            + _table([["role", "axes", "seen in", "name"], *names])
        )
    text = text.rstrip()
    print(text)
    return text


def _described(
    layers: LayersFn, params: Any, compressor: Any, strict: bool, evidence: bool
) -> str:
    """The table of one tree of layers."""
    leaves = join(layers, params)
    if strict:
        _refuse_guesses(leaves)
    header = ["path", "shape", "layer", "norm", "radius", "matrices"]
    rows = [_row(leaf) for leaf in leaves]
    if compressor is not None:
        header += ["compressor", "payload"]
        for row, leaf in zip(rows, leaves, strict=True):
            row += _sent(compressor, leaf)
    if evidence or any(map(_guessed, leaves)):
        header += ["read as" if evidence else "guessed"]
        for row, leaf in zip(rows, leaves, strict=True):
            row.append(_evidence(leaf) if evidence or _guessed(leaf) else "")
    return _table([header, *rows])


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(leaf: Leaf) -> list[str]:
    layer, shape = leaf.layer, jnp.shape(leaf.value)
    index = "-" if leaf.start is None else str(leaf.start)
    if leaf.start is not None and leaf.axis is not None:
        index += f"…{leaf.start + leaf.num_layers - 1}"
    norm = "none (not moved by an LMO)" if layer.norm is None else repr(layer.norm)
    counts = Counter(leaf.view.matrix_shapes(shape))
    matrices = " + ".join(
        f"{k * times} × ({m}, {n})" for (k, m, n), times in counts.items()
    )
    radius = "schedule" if callable(layer.radius) else str(layer.radius)
    return [leaf.path, str(shape), index, norm, radius, matrices]


def _sent(compressor: Compressor | Rules, leaf: Leaf) -> list[str]:
    """What compresses the leaf, and the payload's share of the leaf in float32."""
    names: dict[str, None] = {}
    num_bits = num_entries = 0
    for k, m, n in leaf.view.matrix_shapes(jnp.shape(leaf.value)):
        chosen = choose(compressor, leaf.path, (m, n))
        names[repr(chosen)] = None
        num_bits += k * chosen.num_bits((m, n))
        num_entries += k * m * n
    return [", ".join(names), f"{num_bits / max(32 * num_entries, 1):.1%}"]


def _guessed(leaf: Leaf) -> bool:
    return leaf.reading is not None and leaf.reading.evidence == "guess"


def _evidence(leaf: Leaf) -> str:
    reading = leaf.reading
    if reading is None:
        return "a rule's view"
    return f"{reading.role or 'unknown'} ({reading.evidence}: {reading.why})"


def _refuse_guesses(leaves: list[Leaf]) -> None:
    found = [leaf for leaf in leaves if _guessed(leaf)]
    if found:
        names = [f"{leaf.path!r}, read as {_evidence(leaf)}" for leaf in found]
        rules = [
            rule_for(leaf.path, leaf.layer.norm, leaf.layer.radius, leaf.view)
            for leaf in found
        ]
        raise ValueError(how_to_settle(names, rules, _geometry(found)))


def _geometry(found: list[Leaf]) -> str:
    """The default geometry that these leaves have their norms and radii of, or none."""
    for geometry in (scion_geometry, ball_geometry, muon_geometry):
        if all(
            leaf.reading is not None
            and leaf.reading.role is not None
            and geometry(leaf.path, jnp.shape(leaf.value), leaf.reading)
            == (leaf.layer.norm, leaf.layer.radius)
            for leaf in found
        ):
            return geometry.__name__
    return ""
