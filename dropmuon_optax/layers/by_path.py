"""Which leaf is (part of) which layer, in which norm, with which radius.

`layers` is, everywhere in this package, a function from a tree of parameters to a tree
of `Layer`s of the same structure. A layer's index is its position counted from the
input, set by name and never by the order in which JAX flattens a tree.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dropmuon_optax.compressors import Compressor
from dropmuon_optax.layers.geometry import scion_geometry
from dropmuon_optax.layers.leaves import (
    Layer,
    LayersFn,
    Leaf,
    Stacked,
    fan_out_first,
    join,
    path_of,
)
from dropmuon_optax.layers.rules import Rules, check_rules, choose
from dropmuon_optax.layers.scans import one_length, stack_lengths, without
from dropmuon_optax.norms import Norm

GeometryFn = Callable[[str, tuple[int, ...]], tuple[Norm | None, Any]]
Rule = tuple[Any, ...]  # (regex, norm, radius) or (regex, norm, radius, view)


def layers_by_path(
    order: Sequence[str] | None,
    geometry: Sequence[Rule] | GeometryFn | None = None,
    *,
    stacked: str | None = None,
    stacked_axis: int = 0,
) -> LayersFn:
    r"""Layers, norms and radii by regular expressions over the leaves' paths.

    A leaf's path is its keys joined by "/", such as `blocks_3/attn/kernel`. Rules are
    tried in order with `re.search`; the first that matches counts.

    Args:
      order: regular expressions in forward order; the leaves that one matches are one
        layer, or, if it captures a number, one layer per number, in numeric order. A
        leaf used at both ends (tied embeddings) belongs where the first match puts it,
        at the input as a rule; truncated backpropagation then updates it only in steps
        that go all the way back. None: layers have no order, and can't be dropped.
      geometry: a list of (regex, norm, radius) or (regex, norm, radius, view); or a
        function of (path, shape) that returns (norm, radius), such as `muon_geometry`;
        None is `scion_geometry`. The norm None marks a leaf that no oracle moves.
      stacked: a regular expression for leaves with an axis over layers, as a scan lays
        them out; the expression in `order` that matches them stands for as many layers.
      stacked_axis: that axis; 1 in MaxText, say.

    Returns:
      A function from the parameters to a tree of `Layer`s (and `Stacked`s).

    Raises:
      ValueError: here if an argument is malformed; when the function is called if a
        leaf matches no rule or a rule matches no leaf, naming either.

    Examples:
      >>> from dropmuon_optax import norms
      >>> layers = layers_by_path(
      ...     order=[r"block_(\d+)", "head"],
      ...     geometry=[("head", norms.MaxEntry(), 16.0), ("", norms.Spectral(), 1.0)],
      ... )
      >>> w = jnp.ones((4, 4))
      >>> tree = layers({"head": w, "block_10": w, "block_9": w})
      >>> {name: layer.index for name, layer in tree.items()}
      {'block_10': 1, 'block_9': 0, 'head': 2}
    """
    patterns = None if order is None else [_compile("order", entry) for entry in order]
    rules = _rules(geometry)
    in_stack = None if stacked is None else _compile("stacked", stacked)
    Stacked(None, None, axis=stacked_axis)  # its checks

    def layers(params: Any) -> Any:
        # Masked leaves (optax.partition, optax.masked) keep their place in the order.
        flat, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=_masked)
        if not flat:  # as `optax.tree_map_params` asks, with a placeholder for a tree
            return params
        paths = [path_of(keys) for keys, _ in flat]
        shapes = {
            path: jnp.shape(value)
            for path, (_, value) in zip(paths, flat, strict=True)
            if not _masked(value)
        }
        lengths = stack_lengths(in_stack, stacked_axis, shapes)
        stacks = {path: shapes[path] for path in lengths}
        if in_stack and not any(map(in_stack.search, paths)):
            raise ValueError(
                f"`stacked` must match a leaf, got {stacked!r} for {paths}"
            )
        indices = _indices_by_order(patterns, paths, stacks, stacked_axis)
        axes = [stacked_axis if path in stacks else None for path in paths]
        norms = _norms_by_rules(rules, flat, axes)
        tree = [
            value
            if _masked(value)
            else Stacked(index, *norm, length=lengths[path], axis=stacked_axis)
            if path in lengths
            else Layer(index, *norm)
            for path, (_, value), index, norm in zip(
                paths, flat, indices, norms, strict=True
            )
        ]
        return jax.tree.unflatten(structure, tree)

    return layers


def _masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _compile(name: str, pattern: Any) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"`{name}` must hold regular expressions, got {pattern!r}: {error}"
        ) from None


def _rules(geometry: Any) -> Any:
    if geometry is None:
        return scion_geometry
    if callable(geometry):
        return geometry
    rules = []
    for rule in geometry:
        if not isinstance(rule, tuple) or len(rule) not in (3, 4):
            raise ValueError(
                "`geometry` must hold (regex, norm, radius) or (regex, norm, radius, "
                f"view), got {rule!r}"
            )
        Layer(None, *rule[1:])  # its checks
        rules.append((_compile("geometry", rule[0]), rule[1:]))
    return rules


def _indices_by_order(
    patterns: list[re.Pattern[str]] | None,
    paths: list[str],
    stacks: dict[str, tuple[int, ...]],
    axis: int,
) -> list[int | None]:
    """The index of each leaf's layer, from the expressions' matches."""
    if patterns is None:
        return [None] * len(paths)
    places = [_place(patterns, path) for path in paths]
    counts = [1] * len(patterns)
    numbers: list[dict[int, int]] = [{} for _ in patterns]
    for entry, pattern in enumerate(patterns):
        mine = [i for i, place in enumerate(places) if place[0] == entry]
        if not mine:
            raise ValueError(
                f"every rule of `order` must match a leaf that no rule before it does, "
                f"got {pattern.pattern!r} for {paths}"
            )
        of_entry = {paths[i]: stacks[paths[i]] for i in mine if paths[i] in stacks}
        depth = one_length(pattern.pattern, axis, of_entry)
        captured = sorted({places[i][1] for i in mine})
        numbers[entry] = {number: rank for rank, number in enumerate(captured)}
        counts[entry] = max(len(captured), depth or 1)
    starts = [sum(counts[:entry]) for entry in range(len(patterns))]
    return [starts[entry] + numbers[entry][number] for entry, number in places]


def _place(patterns: list[re.Pattern[str]], path: str) -> tuple[int, int]:
    """(which expression matches the path first, the number it captures or 0)."""
    for entry, pattern in enumerate(patterns):
        match = pattern.search(path)
        if match:
            group = next((g for g in match.groups() if g is not None), "0")
            if not group.isdigit():
                raise ValueError(
                    f"`order` must capture numbers, got {group!r} from "
                    f"{pattern.pattern!r} for {path!r}"
                )
            return entry, int(group)
    raise ValueError(f"`order` must match every leaf, got none for {path!r}")


def _norms_by_rules(
    rules: GeometryFn | list[tuple[re.Pattern[str], Rule]],
    flat: list[tuple[Any, Any]],
    axes: list[int | None],
) -> list[Rule]:
    """(norm, radius) or (norm, radius, view) of each leaf; () where it is masked."""
    found: list[Rule] = []
    dead = set() if callable(rules) else {pattern.pattern for pattern, _ in rules}
    for (keys, value), axis in zip(flat, axes, strict=True):
        path = path_of(keys)
        if callable(rules):
            found.append(
                () if _masked(value) else rules(path, _shape(keys, value, axis))
            )
            continue
        for pattern, rule in rules:
            if pattern.search(path):
                dead.discard(pattern.pattern)
                found.append(rule)
                break
        else:
            if not _masked(value):
                raise ValueError(
                    f"`geometry` must match every leaf, got none for {path!r}"
                )
            found.append(())
    if dead and not any(_masked(value) for _, value in flat):
        raise ValueError(
            f"every rule of `geometry` must match a leaf that no rule before it does, "
            f"got {sorted(dead)} for {[path_of(keys) for keys, _ in flat]}"
        )
    return found


def _shape(keys: Sequence[Any], value: Any, axis: int | None) -> tuple[int, ...]:
    """The leaf's shape in Flax's order (spatial…, fan_in, fan_out), without a stack."""
    shape = without(jnp.shape(value), axis)
    if fan_out_first(keys, len(shape)):
        return (*shape[2:], shape[1], shape[0])
    return shape


def describe(
    layers: LayersFn, params: Any, compressor: Compressor | Rules | None = None
) -> str:
    """Prints what goes where: path, shape, layer, norm, radius and matrix view.

    Args:
      layers: a function from the parameters to a tree of `Layer`s.
      params: the parameters (or their `jax.ShapeDtypeStruct`s).
      compressor: as `ef21_muon` takes them; shows each leaf's compressor besides, and
        its payload as a share of the leaf in float32.

    Returns:
      The text that was printed.

    Raises:
      ValueError: if `layers` or `compressor` doesn't fit the parameters.

    Examples:
      >>> from dropmuon_optax import norms
      >>> layers = layers_by_path(None, [("", norms.MaxEntry(), 1.0)])
      >>> _ = describe(layers, {"w": jnp.ones((8, 4))})
      path  shape   layer  norm        radius  matrices
      w     (8, 4)  -      MaxEntry()  1.0     1 × (8, 4)
    """
    check_rules("compressor", compressor)
    header = ("path", "shape", "layer", "norm", "radius", "matrices")
    sent = () if compressor is None else ("compressor", "payload")
    rows: list[tuple[str, ...]] = [(*header, *sent)]
    for leaf in join(layers, params):
        layer, shape = leaf.layer, jnp.shape(leaf.value)
        index = "-" if leaf.start is None else str(leaf.start)
        if leaf.start is not None and leaf.axis is not None:
            index += f"…{leaf.start + leaf.num_layers - 1}"
        norm = "none (not moved by an LMO)" if layer.norm is None else repr(layer.norm)
        counts = Counter(leaf.view.matrix_shapes(shape))
        matrices = " + ".join(
            f"{k * times} × ({m}, {n})" for (k, m, n), times in counts.items()
        )
        if compressor is not None:
            sent = _sent(compressor, leaf)
        row = leaf.path, str(shape), index, norm, str(layer.radius), matrices
        rows.append((*row, *sent))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    print(text)
    return text


def _sent(compressor: Compressor | Rules, leaf: Leaf) -> tuple[str, str]:
    """What compresses the leaf, and the payload's share of the leaf in float32."""
    names: dict[str, None] = {}
    num_bits = num_entries = 0
    for k, m, n in leaf.view.matrix_shapes(jnp.shape(leaf.value)):
        chosen = choose(compressor, leaf.path, (m, n))
        names[repr(chosen)] = None
        num_bits += k * chosen.num_bits((m, n))
        num_entries += k * m * n
    return ", ".join(names), f"{num_bits / (32 * num_entries):.1%}"
