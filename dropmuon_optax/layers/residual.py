"""Residual branches: one that does nothing yet, one that no gradient enters."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dropmuon_optax.layers.leaves import LayersFn, join
from dropmuon_optax.layers.parts import check_active, place


def zero_outputs(params: Any, layers: LayersFn, present: Any, outputs: str) -> Any:
    """The parameters with the outputs of layers that are absent at first set to zero.

    A block whose branch ends in a matrix of zeros is the identity, h + 0: a layer that
    is absent (see `samplings.Grown`) enters later without a jump of the loss, and moves
    from there, for the gradient of that matrix is not zero.

    Args:
      params: the parameters.
      layers: a function from the parameters to a tree of `Layer`s with indices.
      present: b bools, the layers that are there from the beginning, such as
        `present_layers(sampling, b, key, 0)`.
      outputs: a regular expression that is found in the paths of what each residual
        branch ends in, its bias too if it has one that isn't zero. A block of
        attention and a perceptron has two such matrices.

    Returns:
      The same tree, zeros in the leaves (of stacked ones, in the rows) that `outputs`
      names of layers that aren't present.

    Raises:
      ValueError: if `present` isn't a tuple of b bools, a leaf's layer has no index, or
        there is a layer, neither present nor with a leaf that `outputs` names.

    Examples:
      >>> from dropmuon_optax.layers.by_path import layers_by_path
      >>> block = {"up": jnp.ones((2, 1, 1)), "down": jnp.ones((2, 1, 1))}
      >>> params = {"embed": jnp.ones(1), "blocks": block}
      >>> layers = layers_by_path(order=["embed", "blocks"], stacked="blocks")
      >>> found = zero_outputs(params, layers, (True, True, False), "down")
      >>> print(found["blocks"]["up"].ravel(), found["blocks"]["down"].ravel())
      [1. 1.] [1. 0.]
    """
    placed, pattern = place(layers, params), re.compile(outputs)
    present = check_active(present, placed.num_layers)
    absent, found = [not here for here in present], []
    missing = {i for i, out in enumerate(absent) if out}
    leaves, parts = join(layers, params), placed.parts(absent)
    for leaf, part, indices in zip(leaves, parts, placed.indices, strict=True):
        x = leaf.value
        if part.any and pattern.search(leaf.path):
            missing -= set(indices)
            x = jnp.where(part.mask(x.ndim), jnp.zeros_like(x), x)
        found.append(x)
    if missing:
        raise ValueError(
            "`outputs` must be found in the path of a leaf of every layer that isn't "
            f"present, got {outputs!r}, found in none of layers {sorted(missing)}"
        )
    return jax.tree.unflatten(jax.tree.structure(params), found)


def drop_backward(block: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A residual block that is run, and whose branch no gradient enters.

    The value is the block's; the gradient of its output goes to its input unchanged, as
    if the block were the identity, and its parameters get none. So layers below can go
    on moving while the backward pass skips the block. It is the rule of DropBP, which
    draws at random whose branches are dropped. The gradient of the layers below is not
    that of the loss: it lacks what came through the branch.

    Args:
      block: a function (one layer's parameters, h) -> h + branch, of the structure,
        shapes and dtypes of h.

    Returns:
      A function (parameters, h) -> h, to be run in the block's place where a layer
      doesn't move, by `scan_layers(…, frozen=…)` or a loop.

    Raises:
      ValueError: when called, if the output is not laid out as `h` is.

    Examples:
      >>> block = lambda w, h: h + w * h**2
      >>> dropped = drop_backward(block)
      >>> print(dropped(3.0, 1.0), *jax.grad(dropped, argnums=(0, 1))(3.0, 1.0))
      4.0 0.0 1.0

    References:
      Woo et al., DropBP, arXiv:2402.17812.
    """

    def run(params: Any, h: Any) -> Any:
        stop = jax.lax.stop_gradient
        value = block(stop(params), stop(h))
        layout = functools.partial(
            jax.tree.map, lambda x: (jnp.shape(x), jnp.result_type(x))
        )
        if layout(value) != layout(h):
            raise ValueError(
                f"`block` must return what is laid out as `h`, {layout(h)}, got "
                f"{layout(value)}"
            )
        return _passing(value, h)

    return run


@jax.custom_jvp
def _passing(value: Any, h: Any) -> Any:
    """`value`, with the derivative of `h`."""
    del h
    return value


@_passing.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    return primals[0], tangents[1]
