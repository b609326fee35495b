"""Which leaf is (part of) which layer, in which norm, with which radius.

`layers` is, everywhere in this package, a function from a tree of parameters to a tree
of `Layer`s of the same structure. A layer's index is its position counted from the
input, set by name and never by the order in which JAX flattens a tree.
"""

import re
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
    Stacked,
    fan_out_first,
    join,
    path_of,
)
from dropmuon_optax.layers.rules import Rules, check_rules, choose
from dropmuon_optax.norms import Norm

GeometryFn = Callable[[str, tuple[int, ...]], tuple[Norm | None, Any]]
Rule = tuple[Any, ...]  # (regex, norm, radius) or (regex, norm, radius, view)


def layers_by_path(
    order: Sequence[str] | None,
    geometry: Sequence[Rule] | GeometryFn | None = None,
    *,
    stacked: str | None = None,
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
      stacked: a regular expression for leaves whose leading axis runs over layers; the
        expression in `order` that matches them stands for as many layers.

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

    def layers(params: Any) -> Any:
        # Masked leaves (optax.partition, optax.masked) keep their place in the order.
        flat, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=_masked)
        if not flat:  # as `optax.tree_map_params` asks, with a placeholder for a tree
            return params
        paths = [path_of(keys) for keys, _ in flat]
        lengths = [
            _stack_length(path, value) if in_stack and in_stack.search(path) else None
            for path, (_, value) in zip(paths, flat, strict=True)
        ]
        if in_stack and not any(map(in_stack.search, paths)):
            raise ValueError(
                f"`stacked` must match a leaf, got {stacked!r} for {paths}"
            )
        indices = _indices_by_order(patterns, paths, lengths)
        norms = _norms_by_rules(rules, flat, lengths)
        tree = [
            value
            if _masked(value)
            else Layer(index, *norm)
            if length is None
            else Stacked(index, *norm, length=length)
            for (_, value), index, norm, length in zip(
                flat, indices, norms, lengths, strict=True
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


def _stack_length(path: str, value: Any) -> int | None:
    if _masked(value):
        return None
    if jnp.ndim(value) == 0:
        raise ValueError(
            f"`stacked` must match leaves with a leading axis, got {path!r}"
        )
    return jnp.shape(value)[0]


def _indices_by_order(
    patterns: list[re.Pattern[str]] | None,
    paths: list[str],
    lengths: list[int | None],
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
        depths = {length for i in mine if (length := lengths[i]) is not None}
        if len(depths) > 1:
            raise ValueError(
                f"leaves stacked in {pattern.pattern!r} must have leading axes of one "
                f"length, got {sorted(depths)}"
            )
        captured = sorted({places[i][1] for i in mine})
        numbers[entry] = {number: rank for rank, number in enumerate(captured)}
        counts[entry] = max(len(captured), *depths, 1)
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
    lengths: list[int | None],
) -> list[Rule]:
    """(norm, radius) or (norm, radius, view) of each leaf; () where it is masked."""
    found: list[Rule] = []
    dead = set() if callable(rules) else {pattern.pattern for pattern, _ in rules}
    for (keys, value), length in zip(flat, lengths, strict=True):
        path = path_of(keys)
        if callable(rules):
            found.append(
                () if _masked(value) else rules(path, _shape(keys, value, length))
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


def _shape(keys: Sequence[Any], value: Any, length: int | None) -> tuple[int, ...]:
    """The leaf's shape in Flax's order (spatial…, fan_in, fan_out), without a stack."""
    shape = jnp.shape(value)[0 if length is None else 1 :]
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
        if isinstance(layer, Stacked):
            count, m, n = leaf.view.matrix_shape(shape[1:])
            count, start = count * shape[0], layer.start
            index = "-" if start is None else f"{start}…{start + shape[0] - 1}"
        else:
            count, m, n = leaf.view.matrix_shape(shape)
            index = "-" if layer.index is None else str(layer.index)
        norm = "none (not moved by an LMO)" if layer.norm is None else repr(layer.norm)
        matrices = f"{count} × ({m}, {n})"
        if compressor is not None:
            chosen = choose(compressor, leaf.path, (m, n))
            share = chosen.num_bits((m, n)) / max(32 * m * n, 1)
            sent = repr(chosen), f"{share:.1%}"
        radius = "schedule" if callable(layer.radius) else str(layer.radius)
        row = leaf.path, str(shape), index, norm, radius, matrices
        rows.append((*row, *sent))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    print(text)
    return text
