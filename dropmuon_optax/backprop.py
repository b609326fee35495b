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
from dropmuon_optax.layers.modules import (
    is_nnx,
    nnx_value_and_grad,
    parameters,
    with_parameters,
)
from dropmuon_optax.layers.parts import WHOLE, Part, check_active, place, runs


def value_and_grad(
    fun: Callable[..., Any], layers: LayersFn, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    r"""`jax.value_and_grad` that stops where no layer below moves.

    The function returned takes the arguments of `fun` and `active`, a tuple of b bools
    that is static under jit: one program is compiled for each distinct one. Gradients
    of layers that don't move are zeros.

    What is differentiated, and what `layers` is called with:

    - of a module of Flax nnx, the `nnx.State` of its `nnx.Param`s. All other state
      (batch statistics, counters of random streams, variables of one's own) is updated
      in place, as by `nnx.value_and_grad`;
    - of a module of Equinox, its inexact arrays; the gradient is None elsewhere, as in
      `eqx.filter_value_and_grad`;
    - any other tree, as it is: of linen's variables give those in "params".

    The forward pass runs through frozen layers as through others. Their weights stay,
    but the running statistics of a BatchNorm move, and Dropout draws new masks. Who
    wants the statistics to stay, calls the BatchNorm of a layer that doesn't move with
    `use_running_average=True`; it normalizes by them, then.

    A leaf that is `Stacked` over layers is differentiated as a whole if any of its
    layers moves; have the model run through `scan_layers` to cut that short too.

    Args:
      fun: a function of the model or its parameters and of further arguments that
        returns a scalar, or a scalar and auxiliary values.
      layers: a function from the parameters to a tree of `Layer`s with indices.
      has_aux: whether `fun` returns auxiliary values (linen's batch statistics, say).

    Returns:
      A function (params, \*args, active=None, \*\*kwargs) -> (value, gradient), where
      the gradient has the parameters' structure, shapes and dtypes. `active=None` is
      all layers.

    Raises:
      ValueError: when called, if `active` isn't a tuple of b bools of which one is
        True; naming the leaf, if its layer has no index, or it is no parameter or no
        floating-point array.

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

      A module of Flax nnx; then `nnx.Optimizer.update(model, grads, active=active)`:

      >>> from flax import nnx
      >>> model = nnx.Sequential(
      ...     nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0)),
      ...     nnx.BatchNorm(1, rngs=nnx.Rngs(0)),
      ... )
      >>> layers_of_model = layers_by_path(order=[r"layers/(\d)"])
      >>> step = value_and_grad(lambda model, x: jnp.sum(model(x)), layers_of_model)
      >>> value, grads = step(model, jnp.ones((2, 1)), active=(False, True))
      >>> print(grads["layers"][1]["bias"][...], bool(model.layers[1].mean[...] == 0))
      [2.] False

      `TrainState.apply_gradients` of linen doesn't hand `active` to the optimizer.
      Leave it out, and `update` draws the same set (with conditionals in place of what
      is not in the program); or hand it on:

      >>> import optax
      >>> from flax.training import train_state
      >>> class TrainState(train_state.TrainState):
      ...     def apply_gradients(self, *, grads, active=None, **changes):
      ...         updates, opt_state = self.tx.update(
      ...             grads, self.opt_state, self.params, active=active
      ...         )
      ...         params = optax.apply_updates(self.params, updates)
      ...         changes |= {"params": params, "opt_state": opt_state}
      ...         return self.replace(step=self.step + 1, **changes)
    """
    checks.is_function("fun", fun)
    checks.is_function("layers", layers)

    def gradient(
        params: Any, *args: Any, active: Any = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        flat, structure = jax.tree.flatten(tree := parameters(params))
        parts = [WHOLE] * len(flat)
        if active is not None:
            placed = place(layers, tree)
            parts = placed.parts(check_active(active, placed.num_layers))
        moves = [part.any for part in parts]
        cut = nnx_value_and_grad if is_nnx(params) else _value_and_grad
        value, found = cut(fun, moves, has_aux)(params, *args, **kwargs)
        rest = iter(found)
        grads = [
            _zero_frozen_rows(next(rest), part) if part.any else jnp.zeros_like(x)
            for x, part in zip(flat, parts, strict=True)
        ]
        return value, jax.tree.unflatten(structure, grads)

    return gradient


def _value_and_grad(
    fun: Callable[..., Any], moves: list[bool], has_aux: bool
) -> Callable[..., tuple[Any, list[Any]]]:
    """`jax.value_and_grad` with respect to some leaves of the parameters."""

    def gradient(model: Any, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        flat, structure = jax.tree.flatten(parameters(model))

        def of_moving(moving: list[Any]) -> Any:
            rest = iter(moving)
            pairs = zip(flat, moves, strict=True)
            leaves = [next(rest) if moving else x for x, moving in pairs]
            params = jax.tree.unflatten(structure, leaves)
            return fun(with_parameters(model, params), *args, **kwargs)

        moving = [x for x, moving in zip(flat, moves, strict=True) if moving]
        return jax.value_and_grad(of_moving, has_aux=has_aux)(moving)

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
