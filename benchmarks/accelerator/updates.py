"""Part 1: update time of whole trees, as `benchmarks.oracle` has it.

In bfloat16 weights, gradients and state are; then no orthogonality error is read off,
as the weights' rounding is larger than a step. In float32 our Muon comes with
products in bfloat16 too (`Spectral(dtype="bfloat16")`).
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import dropmuon_optax as dm
from benchmarks.accelerator.figures import Figure
from benchmarks.oracle import __main__ as oracle
from benchmarks.oracle import trees
from dropmuon_optax.layers.geometry import muon_geometry

TREES = {
    "full": {
        "GPT-2 124M": 20,
        "width 256 × 6": 20,
        "GPT-2 124M, stacked": 20,
        "width 64 × 48": 20,
        "ResNet-18": 20,
    },
    "tiny": {"tiny": 2},
}  # name -> rounds


def figures(scale: str) -> list[Figure]:
    """Trees from the most telling on, each in both dtypes."""
    return [
        Figure(name, dtype, partial(measure, name, num_rounds, dtype))
        for name, num_rounds in TREES[scale].items()
        for dtype in ("float32", "bfloat16")
    ]


def measure(name: str, num_rounds: int, dtype: str) -> dict[str, Any]:
    """All optimizers on one tree, in turns."""
    tree = trees.build(name, seed=0)
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), tree.params)
    optimizers = dict(trees.OPTIMIZERS)
    if dtype == "float32":
        optimizers["ours, bfloat16 products"] = half
    found = oracle.measure(tree._replace(params=params), num_rounds, name, optimizers)
    if dtype == "bfloat16":
        for measured in found.values():
            del measured["orthogonality_error"]
    size = sum(x.size for x in jax.tree.leaves(params))
    return {"num_parameters": size, "optimizers": found}


def half(tree: trees.Tree) -> optax.GradientTransformation:
    """Ours, its products in bfloat16."""
    rules = [("kernel", dm.norms.muon_spectral(), 1.0)]
    layers = (
        dm.layers_by_path(None, rules, stacked="blocks")
        if tree.stacked
        else dm.layers_by_path(None, muon_geometry)
    )
    return dm.muon(trees.LEARNING_RATE, in_bfloat16(layers))


def in_bfloat16(layers: Any) -> Any:
    """The same layers, the products of Muon's oracle in bfloat16."""
    norm = dm.norms.muon_spectral(dm.norms.Spectral(dtype="bfloat16"))

    def with_norm(params: Any) -> Any:
        return jax.tree.map(
            lambda layer: (
                layer if layer.norm is None else dataclasses.replace(layer, norm=norm)
            ),
            layers(params),
        )

    return with_norm
