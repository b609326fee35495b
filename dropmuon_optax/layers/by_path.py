"""Which leaf is (part of) which layer, in which norm, with which radius.

`layers` is, everywhere in this package, a function from a tree of parameters to a tree
of `Layer`s of the same structure. A layer's index is its position counted from the
input, set by name and never by the order in which JAX flattens a tree.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dropmuon_optax.layers.geometry import scion_geometry
from dropmuon_optax.layers.leaves import (
    Layer,
    LayersFn,
    Stacked,
    path_of,
    read_keys,
)
from dropmuon_optax.layers.modules import check_params
from dropmuon_optax.layers.readings import AmbiguousError, refuse_ambiguous
from dropmuon_optax.layers.scans import one_length, stack_lengths, without

GeometryFn = Callable[..., tuple[Any, ...]]  # (norm, radius) or (norm, radius, view)
Rule = tuple[Any, ...]  # (regex, norm, radius) or (regex, norm, radius, view)


def layers_by_path(
    order: Sequence[str] | None,
    geometry: Sequence[Rule | GeometryFn] | GeometryFn | None = None,
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
        function of (path, shape) that returns (norm, radius) or (norm, radius, view),
        such as `muon_geometry`; or a list that ends with such a function, for the
        leaves that no rule matches. None is `scion_geometry`. The norm None marks a
        leaf that no oracle moves. Without a view, `describe` shows what was guessed.
      stacked: a regular expression for leaves with an axis over layers, as a scan lays
        them out; the expression in `order` that matches them stands for as many layers.
      stacked_axis: that axis; 1 in MaxText, say.

    Returns:
      A function from the parameters to a tree of `Layer`s (and `Stacked`s).

    Raises:
      ValueError: here if an argument is malformed; when the function is called if a
        leaf matches no rule or a rule matches no leaf, naming either, or if a default
        geometry can't tell what leaves are, with the rules that settle it.

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
    rules, rest = _rules(geometry)
    in_stack = None if stacked is None else _compile("stacked", stacked)
    Stacked(None, None, axis=stacked_axis)  # its checks
    if stacked is None and stacked_axis != 0:
        raise ValueError(
            f"`stacked_axis` must go with `stacked`, got {stacked_axis} without it"
        )

    def layers(params: Any) -> Any:
        check_params(params)
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
        norms = _norms_by_rules(rules, rest, flat, axes)
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


def _rules(geometry: Any) -> tuple[list[Any], GeometryFn | None]:
    """The list of (compiled regex, rule), and the function for what it leaves."""
    if geometry is None:
        return [], scion_geometry
    if callable(geometry):
        return [], _given_reading(geometry)
    geometry, rest = list(geometry), None
    if geometry and callable(geometry[-1]):
        rest = _given_reading(geometry.pop())
    rules = []
    for rule in geometry:
        if not isinstance(rule, tuple) or len(rule) not in (3, 4):
            raise ValueError(
                "`geometry` must hold (regex, norm, radius) or (regex, norm, radius, "
                f"view), and may end with a function, got {rule!r}"
            )
        Layer(None, *rule[1:])  # its checks
        rules.append((_compile("geometry", rule[0]), rule[1:]))
    return rules, rest


def _given_reading(geometry: Any) -> GeometryFn:
    """A geometry function that is given what the leaf was read as."""
    if "reading" in inspect.signature(geometry).parameters:
        return geometry
    return lambda path, shape, reading: geometry(path, shape)


def _indices_by_order(
    patterns: list[re.Pattern[str]] | None,
    paths: list[str],
    stacks: dict[str, tuple[int, ...]],
    axis: int,
) -> list[int | None]:
    """The index of each leaf's layer, from the expressions' matches."""
    if patterns is None:
        return [None] * len(paths)
    places = [_place(patterns, path, paths) for path in paths]
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


def _place(
    patterns: list[re.Pattern[str]], path: str, paths: list[str]
) -> tuple[int, int]:
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
    raise ValueError(
        f"`order` must match every leaf, got none for {path!r}{_dead(patterns, paths)}"
    )


def _dead(patterns: list[re.Pattern[str]], paths: list[str]) -> str:
    """The expressions that match nothing, for a message: a typo is among them."""
    dead = [each.pattern for each in patterns if not any(map(each.search, paths))]
    return f"; no leaf matches {dead}" if dead else ""


def _norms_by_rules(
    rules: list[tuple[re.Pattern[str], Rule]],
    rest: GeometryFn | None,
    flat: list[tuple[Any, Any]],
    axes: list[int | None],
) -> list[Rule]:
    """(norm, radius) or (norm, radius, view) of each leaf; () where it is masked."""
    found: list[Rule] = []
    unmet = {pattern.pattern for pattern, _ in rules}
    ambiguous = []
    for (keys, value), axis in zip(flat, axes, strict=True):
        path = path_of(keys)
        match = next((rule for rule in rules if rule[0].search(path)), None)
        found.append(())
        if match is not None:
            unmet.discard(match[0].pattern)
            found[-1] = match[1]
        elif _masked(value):
            continue
        elif rest is None:
            dead = _dead([rule[0] for rule in rules], [path_of(k) for k, _ in flat])
            raise ValueError(
                f"`geometry` must match every leaf, got none for {path!r}{dead}; its "
                "last entry may be a default, such as `dm.muon_geometry`"
            )
        else:
            try:
                found[-1] = _read(rest, keys, value, axis)
            except AmbiguousError as error:
                ambiguous.append(error)
    refuse_ambiguous(ambiguous)
    if unmet and not any(_masked(value) for _, value in flat):
        raise ValueError(
            f"every rule of `geometry` must match a leaf that no rule before it does, "
            f"got {sorted(unmet)} for {[path_of(keys) for keys, _ in flat]}"
        )
    return found


def _read(rules: GeometryFn, keys: Sequence[Any], value: Any, axis: int | None) -> Rule:
    """What a geometry function says of a leaf."""
    path, shape = path_of(keys), without(jnp.shape(value), axis)
    reading = read_keys(keys, shape)
    if reading.role and reading.view.fan_out == (0,) and len(shape) > 1:
        shape = (*shape[2:], shape[1], shape[0])  # to Flax's order
    return rules(path, shape, reading=reading)
