"""Gradients with respect to the layers that move, and no others.

Backpropagation costs a product with each layer's weights, down to the lowest layer that
moves, and a product with its input for each that does. What neither needs is not in the
program: it is not differentiated, so nothing is left for a compiler to find.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dropmuon_optax import checks
from dropmuon_optax.layers.leaves import LayersFn
from dropmuon_optax.layers.modules import (
    is_nnx,
    nnx_value_and_grad,
    parameters,
    with_parameters,
)
from dropmuon_optax.layers.parts import WHOLE, Part, check_active, place


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
