"""A stack of equal layers, of which some move and some are left out."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dropmuon_optax.layers.leaves import path_of
from dropmuon_optax.layers.parts import check_active, runs


def scan_layers(
    block: Callable[[Any, Any], Any],
    stacked_params: Any,
    h: Any,
    active: Sequence[bool] | None = None,
    present: Sequence[bool] | None = None,
    *,
    axis: int = 0,
    frozen: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """Runs `h` through a stack of equal layers; backpropagation sees those that move.

    h ← block(params[j], h) for j = 0, …, L − 1, by one `jax.lax.scan` for each maximal
    run of layers that move or that don't. Layers that don't are not differentiated with
    respect to their parameters, nor at all if `h` comes from nothing that moves: then
    the backward pass ends at the first layer that does. Layers that aren't `present`
    are left out, h ← h: they cost nothing.

    Args:
      block: a function (one layer's parameters, h) -> h, of one structure and shape.
        Wrap it in `jax.checkpoint` to keep its input only.
      stacked_params: a tree of arrays with an axis of length L over layers.
      h: the input of layer 0, a tree of arrays.
      active: whether each of these L layers moves; static. None is all that are
        present.
      present: whether each of them is run; static. None is all. Only blocks with a
        residual path, h + branch(h), make sense without their neighbors.
      axis: the axis over layers. Others than the leading one are moved there first,
        which copies the parameters.
      frozen: what is run in place of `block` for layers that don't move, such as
        `drop_backward(block)`; None is `block`.

    Returns:
      The output of the last layer that is present.

    Raises:
      ValueError: if `active` or `present` isn't a tuple of L bools, a layer moves that
        isn't present, or the axes differ in length.

    Examples:
      The stack is layers 1 to 4 of a model that has an embedding in front:

      >>> from dropmuon_optax.backprop.gradients import value_and_grad
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
    present = check_active(
        (True,) * length if present is None else present, length, True
    )
    active = check_active(present if active is None else active, length, empty=True)
    if any(moves and not here for moves, here in zip(active, present, strict=True)):
        raise ValueError(
            f"`present` must hold every layer of `active`, got {present} for {active}"
        )
    for start, stop, (moves, here) in runs(list(zip(active, present, strict=True))):
        if not here:
            continue
        run = stacked_params
        if stop - start < length:
            run = jax.tree.map(lambda x, a=start, b=stop: x[a:b], run)
        if not moves:
            run = jax.lax.stop_gradient(run)
        chosen = block if moves or frozen is None else frozen
        h, _ = jax.lax.scan(lambda h, params, f=chosen: (f(params, h), None), h, run)
    return h


def drop_backward(block: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A residual block that is run, and whose branch no gradient enters.

    Its value is the block's; the gradient of its output goes to its input as if it were
    the identity, and its parameters get none. So the backward pass skips it, and layers
    below move on, by a gradient that lacks what comes through the branch. The rule is
    DropBP's, which draws at random whose branches are dropped.

    Args:
      block: a function (one layer's parameters, h) -> h + branch, laid out as h is.

    Returns:
      A function (parameters, h) -> h, to be run in the block's place where a layer
      doesn't move, by `scan_layers(…, frozen=…)` or a loop.

    Examples:
      >>> dropped = drop_backward(lambda w, h: h + w * h**2)
      >>> print(dropped(3.0, 1.0), *jax.grad(dropped, argnums=(0, 1))(3.0, 1.0))
      4.0 0.0 1.0

    References:
      Woo et al., DropBP, arXiv:2402.17812.
    """
    stop = jax.lax.stop_gradient
    return lambda params, h: _passing(block(stop(params), stop(h)), h)


@jax.custom_jvp
def _passing(value: Any, h: Any) -> Any:
    """`value`, with the derivative of `h`."""
    del h
    return value


_passing.defjvp(lambda primals, tangents: (primals[0], tangents[1]))


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
