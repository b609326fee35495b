"""Trees that must fit one another: parameters, gradients, masks, and a state.

What doesn't fit is refused by name, before any arithmetic: JAX would broadcast it, or
say of two trees no more than that they differ. The checks look at structures, shapes
and dtypes alone; under jit they cost time when a program is traced, and none after.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dropmuon_optax import checks, linalg
from dropmuon_optax.layers.leaves import path_of
from dropmuon_optax.layers.modules import check_params


def checked(
    tx: optax.GradientTransformationExtraArgs,
    kind: Any = jnp.inexact,
    *,
    shapes: bool = True,
    moves_all: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """`tx`, refusing by name what it can't move, and what doesn't fit.

    Args:
      tx: a transformation.
      kind: of which numbers parameters may be.
      shapes: whether the state's shapes are looked at; a worker has a part of them.
      moves_all: whether a set of layers that move, `active`, is refused.

    Returns:
      The same, whose `init` refuses other leaves, and whose `update` refuses what isn't
      its own state or the parameters' gradients.
    """
    first = shapes_of_state(tx.init)

    def init(params: Any) -> Any:
        check_params(params)
        for keys, leaf in jax.tree.leaves_with_path(params):
            checks.is_inexact(path_of(keys), leaf, kind)
        return tx.init(params)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        if moves_all and extra.get("active") is not None:
            raise ValueError(
                "`active` must go to what drops layers, and this moves all of them: "
                "wrap it in `drop_layers`, or, beside another part of the parameters "
                "that takes it, in `optax.GradientTransformation(tx.init, tx.update)`; "
                f"got {extra['active']!r}"
            )
        if params is not None:
            check_gradients(updates, params)
        expected = first(updates if params is None else params)
        elsewhere = None if shapes else jax.tree.map(lambda _: True, expected)
        check_state(state, expected, elsewhere)
        return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def ranged(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """`tx` on float32 copies of what has a shorter range, rounded once at the end.

    In float16 and 8-bit floats a step of the ball, a tenth of a gradient and a learning
    rate may each be out of range where their product is not.

    Args:
      tx: a transformation.

    Returns:
      The same, whose updates have the parameters' dtype; without these the gradients'.
    """

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(linalg.ranged_dtype(x)), tree)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        like = updates if params is None else params
        params = None if params is None else wide(params)
        moved, state = tx.update(wide(updates), state, params, **extra)
        return jax.tree.map(lambda u, x: u.astype(x.dtype), moved, like), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def check_gradients(updates: Any, params: Any) -> None:
    """Refuses gradients that are not one array for each parameter, of its shape.

    Raises:
      ValueError: naming the leaf.

    >>> check_gradients({"w": jnp.ones((1, 8))}, {"w": jnp.ones((8, 8))})
    Traceback (most recent call last):
    ...
    ValueError: the gradient of 'w' must have the parameter's shape (8, 8), got (1, 8)
    """
    flat, structure = jax.tree.flatten(params)
    leaves, other = jax.tree.flatten(updates)
    pairs = zip(leaves, flat, strict=False)
    if structure == other and all(_is_gradient(g, x) for g, x in pairs):
        return
    wanted, found = _by_path(params), _by_path(updates)
    for path, x in wanted.items():
        g = found.get(path)
        if x is None:
            continue
        if g is None:
            raise ValueError(
                f"the gradient of {path!r} must be an array of shape {jnp.shape(x)}, "
                f"got {'None' if path in found else 'no such leaf'}"
            )
        if jnp.shape(g) != jnp.shape(x):
            raise ValueError(
                f"the gradient of {path!r} must have the parameter's shape "
                f"{jnp.shape(x)}, got {jnp.shape(g)}"
            )
        if not _is_gradient(g, x):
            raise ValueError(
                f"the gradient of {path!r} must be of the parameter's kind of numbers, "
                f"{jnp.result_type(x)}, got {jnp.result_type(g)}"
            )
    for path, g in found.items():
        if wanted.get(path) is None and g is not None:
            raise ValueError(
                f"gradients must be those of the parameters, got one of {path!r}, "
                "which is none"
            )
    raise ValueError(
        f"gradients must be a tree of the parameters' structure, {structure}, "
        f"got {other}"
    )


def _is_gradient(g: Any, x: Any) -> bool:
    """Whether `g` has the shape of `x` and numbers of its kind."""
    kind = jnp.inexact if _is_complex(jnp.result_type(x)) else jnp.floating
    alike = jnp.shape(g) == jnp.shape(x)
    return alike and jnp.issubdtype(jnp.result_type(g), kind)


def check_state(state: Any, first: Any, own: Any = None) -> None:
    """Refuses a state that isn't one of this transformation and these parameters.

    Args:
      state: as `update` got it.
      first: shapes of what `init` returns.
      own: a tree of bools: of which leaves the shape is looked at elsewhere.

    Raises:
      ValueError: naming the leaf.
    """
    if state is None:
        raise ValueError("`state` must be what `init` returned, got None")
    structure, other = jax.tree.structure(first), jax.tree.structure(state)
    if structure != other:
        known = {path for path, x in _by_path(first).items() if x is not None}
        there = {path for path, x in _by_path(state).items() if x is not None}
        for paths, what in ((known - there, "without"), (there - known, "with")):
            if paths:
                raise ValueError(
                    "`state` must be what `init` returned for these parameters and "
                    f"options, got one {what} {min(paths)!r}"
                )
        raise ValueError(
            "`state` must be what `init` returned for these parameters and options, "
            f"{structure}, got {other}"
        )
    flat, leaves = jax.tree.leaves(first), jax.tree.leaves(state)
    owns = [False] * len(flat) if own is None else jax.tree.leaves(own)
    for i, (x, y, mine) in enumerate(zip(flat, leaves, owns, strict=True)):
        shape, got = jnp.shape(x), jnp.shape(y)
        if got != shape and not mine:
            path = path_of(jax.tree.leaves_with_path(first)[i][0])
            raise ValueError(
                f"`state` must be what `init` returned for these parameters, of shape "
                f"{shape} at {path!r}, got {got}"
            )


def shapes_of_state(init: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function from parameters to the shapes of `init` of them; it remembers."""

    @functools.lru_cache(maxsize=64)
    def shapes(structure: Any, leaves: tuple[tuple[Any, Any], ...]) -> Any:
        flat = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in leaves]
        return jax.eval_shape(init, jax.tree.unflatten(structure, flat))

    def of(params: Any) -> Any:
        flat, structure = jax.tree.flatten(params)
        kinds = tuple((jnp.shape(x), jnp.result_type(x)) for x in flat)
        return shapes(structure, kinds)

    return of


def check_mask(mask: Any) -> None:
    """Refuses what is no tree of bools, and no function that may return one."""
    if mask is None or callable(mask):
        return
    for keys, leaf in jax.tree.leaves_with_path(mask):
        if not isinstance(leaf, bool | np.bool_):
            where = f" at {path_of(keys)!r}" if keys else ""
            raise ValueError(
                "`weight_decay_mask` must be a tree of bools or a function of the "
                f"parameters that returns one, got {leaf!r}{where}"
            )


def masked_by(mask: Any, params: Any) -> Any:
    """For every parameter what `mask` says of it: a tree of bools.

    Args:
      mask: a tree of bools of the parameters' structure or of the top of it, or a
        function from parameters to one; None is True everywhere.
      params: the parameters. Of some of them alone (`optax.MaskedNode` for the others)
        the mask may be that of all.

    Raises:
      ValueError: if it is none of that.

    >>> masked_by({"a": True, "b": False}, {"a": jnp.ones(2), "b": {"c": jnp.ones(2)}})
    {'a': True, 'b': {'c': False}}
    """
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    tree = mask(params) if callable(mask) else mask
    check_mask(tree)
    if isinstance(tree, bool | np.bool_) and not _is_leaf(params):
        raise ValueError(
            "`weight_decay_mask` must be a tree of bools or a function of the "
            f"parameters that returns one, got {tree!r} (`optax.inject_hyperparams` "
            'calls functions as schedules: give it static_args=("weight_decay_mask",))'
        )
    try:
        return jax.tree.map(
            lambda keep, part: jax.tree.map(lambda _: bool(keep), part), tree, params
        )
    except ValueError as error:
        raise ValueError(
            "`weight_decay_mask` must be a tree of the parameters' structure, or of "
            f"the top of it: {error}"
        ) from None


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves by path, None among them."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    return {path_of(keys): x for keys, x in flat}


def _is_complex(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.complexfloating)


def _is_leaf(tree: Any) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(tree))
