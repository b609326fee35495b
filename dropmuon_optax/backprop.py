"""Gradients with respect to the layers that move, and no others.

Backpropagation costs a product with each layer's weights, down to the lowest layer that
moves, and a product with its input for each that does. What neither needs is not in the
program: it is not differentiated, so nothing is left for a compiler to find.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dropmuon_optax import checks
from dropmuon_optax.layers.leaves import LayersFn, path_of
from dropmuon_optax.layers.parts import Part, check_active, place, runs


def value_and_grad(
    fun: Callable[..., Any], layers: LayersFn, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    r"""`jax.value_and_grad` that stops where no layer below moves.

    The function returned takes the arguments of `fun` and `active`, a tuple of b bools
    that is static under jit: one program is compiled for each distinct one. Gradients
    of layers that don't move are zeros.

    A leaf that is `Stacked` over layers is differentiated as a whole if any of its
    layers moves; have the model run through `scan_layers` to cut that short too.

    Args:
      fun: a function of the parameters and further arguments that returns a scalar, or
        a scalar and auxiliary values.
      layers: a function from the parameters to a tree of `Layer`s with indices.
      has_aux: whether `fun` returns auxiliary values (batch statistics, say).

    Returns:
      A function (params, \*args, active=None, \*\*kwargs) -> (value, gradient), where
      the gradient has the parameters' structure, shapes and dtypes. `active=None` is
      all layers.

    Raises:
      ValueError: when called, if `active` isn't a tuple of b bools of which one is
        True, or a leaf's layer has no index.

    Examples:
      >>> from dropmuon_optax.layers import layers_by_path
      >>> layers = layers_by_path(order=[r"dense_(\d)"])
      >>> params = {"dense_0": jnp.array([[2.0]]), "dense_1": jnp.array([[3.0]])}
      >>> def loss(params, x):
      ...     return jnp.sum(x @ params["dense_0"] @ params["dense_1"])
      >>> x = jnp.ones((1, 1))
      >>> value, grads = value_and_grad(loss, layers)(params, x, active=(False, True))
      >>> print(value, grads["dense_0"], grads["dense_1"])
      6.0 [[0.]] [[2.]]

      With a module of Flax nnx, split off its parameters. (`copy=True` lets the model
      write to what is not differentiated, such as batch statistics.)

      >>> from flax import nnx
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> graphdef, params, rest = nnx.split(model, nnx.Param, ...)
      >>> def loss(params, rest, x):
      ...     model = nnx.merge(graphdef, params, rest, copy=True)
      ...     return jnp.sum(model(x)), nnx.state(model, nnx.BatchStat)
      >>> step = value_and_grad(loss, layers_by_path(order=[""]), has_aux=True)
      >>> (value, stats), grads = step(params, rest, jnp.ones((1, 2)), active=(True,))
      >>> print(grads["bias"][...])
      [1.]
    """
    checks.is_function("fun", fun)
    checks.is_function("layers", layers)

    def gradient(
        params: Any, *args: Any, active: Any = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        if active is None:
            return jax.value_and_grad(fun, has_aux=has_aux)(params, *args, **kwargs)
        placed = place(layers, params)
        parts = placed.parts(check_active(active, placed.num_layers))
        flat, structure = jax.tree.flatten(params)

        def of_moving(moving: list[Any]) -> Any:
            rest = iter(moving)
            leaves = [
                next(rest) if part.any else x
                for x, part in zip(flat, parts, strict=True)
            ]
            return fun(jax.tree.unflatten(structure, leaves), *args, **kwargs)

        moving = [x for x, part in zip(flat, parts, strict=True) if part.any]
        value, found = jax.value_and_grad(of_moving, has_aux=has_aux)(moving)
        rest = iter(found)
        grads = [
            _zero_frozen_rows(next(rest), part) if part.any else jnp.zeros_like(x)
            for x, part in zip(flat, parts, strict=True)
        ]
        return value, jax.tree.unflatten(structure, grads)

    return gradient


def _zero_frozen_rows(g: Array, part: Part) -> Array:
    if part.all:
        return g
    return jnp.where(part.mask(g.ndim), g, jnp.zeros_like(g))


def scan_layers(
    block: Callable[[Any, Any], Any],
    stacked_params: Any,
    h: Any,
    active: Sequence[bool] | None = None,
    *,
    axis: int = 0,
) -> Any:
    """Runs `h` through a stack of equal layers; backpropagation sees those that move.

    h ← block(params[j], h) for j = 0, …, L − 1, by one `jax.lax.scan` for each maximal
    run of layers that move or that don't. Layers that don't are not differentiated with
    respect to their parameters, nor at all if `h` comes from nothing that moves: then
    the backward pass ends at the first layer that does.

    Args:
      block: a function (one layer's parameters, h) -> h, of one structure and shape.
        Wrap it in `jax.checkpoint` to keep its input only.
      stacked_params: a tree of arrays with an axis of length L over layers.
      h: the input of layer 0, a tree of arrays.
      active: whether each of these L layers moves; static. None is all.
      axis: the axis over layers. Others than the leading one are moved there first,
        which copies the parameters.

    Returns:
      The output of layer L − 1.

    Raises:
      ValueError: if `active` isn't a tuple of L bools, or the axes differ in length.

    Examples:
      The stack is layers 1 to 4 of a model that has an embedding in front:

      >>> from dropmuon_optax.layers import layers_by_path
      >>> params = {"embed": jnp.ones((3, 2)), "blocks": jnp.ones((4, 2, 2))}
      >>> layers = layers_by_path(order=["embed", "blocks"], stacked="blocks")
      >>> def loss(params, tokens, active):
      ...     h = params["embed"][tokens]
      ...     h = scan_layers(
      ...         lambda w, h: jnp.tanh(h @ w), params["blocks"], h, active[1:]
      ...     )
      ...     return jnp.sum(h)
      >>> active = (False, False, False, True, True)
      >>> value, grads = value_and_grad(lambda *args: loss(*args, active), layers)(
      ...     params, jnp.array([0, 2]), active=active
      ... )
      >>> print(jnp.any(grads["blocks"] != 0, axis=(1, 2)))
      [False False  True  True]
    """
    length = _length(stacked_params, axis)
    if axis != 0:
        stacked_params = jax.tree.map(
            lambda x: jnp.moveaxis(x, axis, 0), stacked_params
        )
    if active is None:
        active = (True,) * length
    for start, stop, moves in runs(check_active(active, length, empty=True)):
        run = stacked_params
        if stop - start < length:
            run = jax.tree.map(lambda x, a=start, b=stop: x[a:b], run)
        if not moves:
            run = jax.lax.stop_gradient(run)
        h, _ = jax.lax.scan(lambda h, params: (block(params, h), None), h, run)
    return h


def _length(stacked_params: Any, axis: int) -> int:
    """How many layers lie along an axis."""
    flat, _ = jax.tree_util.tree_flatten_with_path(stacked_params)
    lengths = {}
    for keys, x in flat:
        ndim = jnp.ndim(x)
        found = jnp.shape(x)[axis] if -ndim <= axis < ndim else None
        lengths.setdefault(found, path_of(keys))
    if len(lengths) != 1 or None in lengths:
        which = "leading axes" if axis == 0 else f"axes {axis}"
        raise ValueError(
            f"`stacked_params` must have {which} of one length, got "
            f"{ ({path: length for length, path in lengths.items()}) }"
        )
    return next(iter(lengths))
