"""The transformer of `nanogpt`, its blocks' weights stacked and scanned over.

The same numbers from a program of one block, which compiles in a time that does not
grow with their number. Backpropagation can stop at any block here too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

import dropmuon_optax as dm
from benchmarks.models import nanogpt
from benchmarks.models.depth import Active, of_blocks


def build(
    size: str | nanogpt.Config, *, seed: int, dtype: DTypeLike = jnp.float32
) -> tuple[Callable[..., jax.Array], Any]:
    """The network as a function, and the initial weights of `nanogpt.build`, stacked.

    Args:
        size: As for `nanogpt.build`.
        seed: Of the initial weights.
        dtype: Of the activations and products; the weights are float32.

    Returns:
        What `nanogpt.build` does, the tree being `embed/embedding`, `blocks/up/kernel`
        (L, C, 4C), ….
    """
    config = nanogpt.config_of(size)
    params = nnx.to_pure_dict(nanogpt.build(config, seed=seed)[1])
    blocks = [params.pop(f"block_{i}") for i in range(config.num_layers)]
    params["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    block = nnx.graphdef(nanogpt.Block(config, dtype, rngs=nnx.Rngs(0)))
    empty = dataclasses.replace(config, num_layers=0)
    without = nnx.graphdef(nanogpt.NanoGPT(empty, dtype, rngs=nnx.Rngs(0)))

    def apply(
        params: Any,
        tokens: Int[Array, "B T"],
        active: Active | None = None,
        present: Active | None = None,
        around: bool = False,
    ) -> Float[Array, "B T V"]:
        ends = {name: part for name, part in params.items() if name != "blocks"}
        model = nnx.merge(without, ends)
        moves, here = of_blocks(nanogpt.layer_order(config), active, present)
        one = run(block)
        x = model.read(tokens)  # (B, T, C)
        x = dm.scan_layers(
            one,
            params["blocks"],
            x,
            moves,
            here,
            frozen=dm.drop_backward(one) if around else None,
        )  # (B, T, C)
        return model.write(x)  # (B, T, V)

    return apply, params


def run(graphdef: Any) -> Callable[[Any, Any], Any]:
    """A module as a function (weights, x) -> output."""
    return lambda weights, x: nnx.merge(graphdef, weights)(x)
