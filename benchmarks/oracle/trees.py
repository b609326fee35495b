"""Trees of parameters by name, and how each optimizer is told what is a matrix."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers

import dropmuon_optax as dm
from benchmarks.models import resnet
from dropmuon_optax import linalg
from dropmuon_optax.layers.geometry import muon_geometry
from dropmuon_optax.linalg.orthogonalize import plain_flops

LEARNING_RATE = 0.02


class Tree(NamedTuple):
    """One tree.

    Attributes:
        params: Arrays; blocks have `qkv`, `out`, `up` and `down`.
        stacked: Whether the leaves of blocks are stacked over them.
        num_rounds: How often to time an update of it.
    """

    params: Any
    stacked: bool
    num_rounds: int


def blocks(width: int, num_blocks: int) -> dict[str, Any]:
    """The matrices of a transformer: no embedding, which no Muon should move."""
    sides = {"qkv": (1, 3), "out": (1, 1), "up": (1, 4), "down": (4, 1)}
    shapes = {name: (a * width, b * width) for name, (a, b) in sides.items()}
    return {
        f"block_{i}": {name: {"kernel": shape} for name, shape in shapes.items()}
        for i in range(num_blocks)
    }


def stacked(width: int, num_blocks: int) -> dict[str, Any]:
    """The same, stacked over blocks, as a scan has them."""
    one = blocks(width, 1)["block_0"]
    shapes = {name: {"kernel": (num_blocks, *w["kernel"])} for name, w in one.items()}
    return {"blocks": shapes}


def resnet18() -> Any:
    """The shapes of ResNet-18 for 32 × 32 images."""
    build = lambda: resnet.build((32, 32, 3), "resnet18", seed=0)[1]  # noqa: E731
    shapes = nnx.to_pure_dict(jax.eval_shape(build))
    return jax.tree.map(lambda leaf: leaf.shape, shapes)


SHAPES: dict[str, tuple[Callable[[], Any], bool, int]] = {
    "width 256 × 6": (lambda: blocks(256, 6), False, 11),
    "width 64 × 48": (lambda: blocks(64, 48), False, 11),
    "ResNet-18": (resnet18, False, 3),
    "GPT-2 124M": (lambda: blocks(768, 12), False, 1),
    "GPT-2 124M, stacked": (lambda: stacked(768, 12), True, 1),
    "tiny": (lambda: blocks(8, 2), False, 2),  # for tests
    "tiny, stacked": (lambda: stacked(8, 2), True, 2),  # for tests
}


def build(name: str, seed: int) -> Tree:
    """A tree of Gaussian entries."""
    shapes, is_stacked, num_rounds = SHAPES[name]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32)),
        shapes(),
        is_leaf=lambda shape: isinstance(shape, tuple),
    )
    return Tree(params, is_stacked, num_rounds)


def ours(
    tree: Tree, spectral: dm.norms.Spectral | None = None, **options: Any
) -> optax.GradientTransformation:
    """Muon as it is here; `spectral` takes the place of its norm."""
    norm = dm.norms.muon_spectral(spectral or dm.norms.Spectral())
    if tree.stacked:
        rules = dm.layers_by_path(None, [("kernel", norm, 1.0)], stacked="blocks")
        return dm.muon(LEARNING_RATE, rules, **options)
    layers = dm.layers_by_path(None, muon_geometry)

    def with_norm(params: Any) -> Any:
        return jax.tree.map(
            lambda layer: layer if layer.norm is None else dm.Layer(None, norm),
            layers(params),
        )

    return dm.muon(LEARNING_RATE, with_norm if spectral else layers, **options)


def optax_muon(tree: Tree, **options: Any) -> optax.GradientTransformation:
    """Optax's, told which leaves are stacks and which are convolutions."""
    conv = MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    stack = MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    kinds = {2: MuonDimensionNumbers(), 3: stack, 4: conv}

    def numbers(params: Any) -> Any:
        paths = jax.tree_util.tree_flatten_with_path(params)[0]
        found = [
            None if "head" in jax.tree_util.keystr(path) else kinds.get(leaf.ndim)
            for path, leaf in paths
        ]
        return jax.tree.unflatten(jax.tree.structure(params), found)

    return optax.contrib.muon(
        LEARNING_RATE, muon_weight_dimension_numbers=numbers, **options
    )


def on_bfloat16(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Shows it gradients and weights in bfloat16, so that its state is, too."""

    def cast(params: Any) -> Any:
        return optax.tree.cast(params, jnp.bfloat16)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return tx.update(cast(updates), state, cast(params))

    return optax.GradientTransformation(lambda params: tx.init(cast(params)), update)


def matrices(tree: Tree) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Where Muon's leaves lie among all, and the matrices they are, (k, m, n)."""
    leaves = jax.tree_util.tree_flatten_with_path(tree.params)[0]
    for i, (path, leaf) in enumerate(leaves):
        if leaf.ndim < 2 or "head" in jax.tree_util.keystr(path):
            continue
        stack = leaf.shape if leaf.ndim == 3 else (1, leaf.size // leaf.shape[-1])
        yield i, (*stack[:2], leaf.shape[-1])


def num_flops(tree: Tree, name: str) -> float | None:
    """FLOPs of the products of an update, by formula; None for AdamW.

    The compiler's count would take the body of a loop once, and Optax's Muon has one
    where each step has its own coefficients.
    """
    if name not in FLOPS:
        return None
    return float(sum(k * FLOPS[name]((m, n)) for _, (k, m, n) in matrices(tree)))


BASE, OURS, FAST = "optax.contrib.muon", "ours", "ours, 4 steps, Schatten"
FOUR = linalg.YOU_JIACHENG.first(4)
SCHATTEN = {"ns_steps": 4, "preconditioning": "schatten"}
KELLER_JORDAN = dm.norms.Spectral()
YOU_JIACHENG = dm.norms.Spectral(4, linalg.YOU_JIACHENG, preconditioning="schatten")
PLAIN = dm.norms.Spectral(orthogonalize=linalg.newton_schulz)

# The first is what the others are compared with.
OPTIMIZERS: dict[str, Callable[[Tree], optax.GradientTransformation]] = {
    BASE: optax_muon,
    f"{BASE}, 4 steps, Schatten": partial(optax_muon, **SCHATTEN),
    f"{BASE}, our 4 steps": partial(optax_muon, ns_coeffs=FOUR, **SCHATTEN),
    f"{BASE}, bfloat16": lambda tree: on_bfloat16(optax_muon(tree)),
    OURS: ours,
    FAST: partial(ours, spectral=YOU_JIACHENG),
    "ours, plain form": partial(ours, spectral=PLAIN),
    "ours, bfloat16 momentum": partial(ours, momentum_dtype="bfloat16"),
    "optax.adamw": lambda tree: optax.adamw(LEARNING_RATE),
}
FLOPS: dict[str, Callable[[tuple[int, int]], int]] = {
    BASE: partial(plain_flops, num_steps=5),
    f"{BASE}, 4 steps, Schatten": partial(plain_flops, num_steps=4),
    f"{BASE}, our 4 steps": partial(plain_flops, num_steps=4),
    f"{BASE}, bfloat16": partial(plain_flops, num_steps=5),
    OURS: KELLER_JORDAN.num_flops,
    FAST: YOU_JIACHENG.num_flops,
    "ours, plain form": partial(plain_flops, num_steps=5),
    "ours, bfloat16 momentum": KELLER_JORDAN.num_flops,
}
