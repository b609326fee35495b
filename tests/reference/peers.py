"""Optimizers of PyTorch, written from their formulas in float64, as transformations.

A tree is {"a": {"kernel": …, "bias": …}, "b": …}, kernels (fan_in, fan_out). Theirs
are (fan_out, fan_in): each formula below sees the transpose.
"""

import jax
import numpy as np
import optax

from tests.reference import boxes, oracles


def by_leaf(start, step):
    """`step(name, x, state, g)` of every leaf, as a transformation, one leaf a time."""

    def names(tree):
        paths = jax.tree_util.tree_flatten_with_path(tree)[0]
        return [str(path[-1].key) for path, _ in paths]

    def init(params):
        return [start(name) for name in names(params)]

    def update(grads, state, params):
        out, after = [], []
        leaves = zip(
            names(params),
            jax.tree.leaves(params),
            state,
            jax.tree.leaves(grads),
            strict=True,
        )
        for name, x, before, g in leaves:
            x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
            moved, kept = step(name, x, before, g)
            out.append(moved - x)
            after.append(kept)
        return jax.tree.unflatten(jax.tree.structure(params), out), after

    return optax.GradientTransformation(init, update)


def keller_jordan(
    lr=0.02,
    momentum=0.95,
    weight_decay=0.0,
    adam_lr=3e-4,
    adam_betas=(0.9, 0.95),
    adam_eps=1e-10,
    adam_weight_decay=0.0,
    nesterov=True,
    ns_steps=5,
):
    """`SingleDeviceMuonWithAuxAdam`: kernels by Muon, biases by AdamW."""

    def step(name, x, state, g):
        if name == "kernel":
            return boxes.muon_step(
                x,
                state,
                g,
                lr=lr,
                beta=momentum,
                decay=weight_decay,
                nesterov=nesterov,
                orthogonalize=lambda u: oracles.newton_schulz(u, ns_steps),
            )
        b1, b2 = adam_betas
        return boxes.adamw_step(
            x, state, g, lr=adam_lr, b1=b1, b2=b2, eps=adam_eps, decay=adam_weight_decay
        )

    return by_leaf(lambda name: 0.0 if name == "kernel" else (0.0, 0.0, 0), step)


def scion(
    lr=0.01, momentum=0.1, norm="Spectral", norm_kwargs=None, scale=50.0, **options
):
    """`Scion`, one norm for the kernels and `BiasRMS` for biases."""
    constrained = not options.pop("unconstrained", False)
    kernel = THEIR_NORMS[norm](**(norm_kwargs or {}), **options)

    def step(name, x, state, g):
        maximizer = kernel if name == "kernel" else oracles.scion_bias
        moved, state = boxes.scion_step(
            x.T,
            state,
            g.T,
            lr=lr,
            alpha=momentum,
            radius=scale,
            maximizer=maximizer,
            constrained=constrained,
        )
        return moved.T, state

    return by_leaf(lambda name: 0.0, step)


def their_spectral(steps=5, **options):
    def lmo(g):
        d_out, d_in = g.shape
        scale = np.sqrt(d_out / d_in)
        if options.get("max"):
            scale = max(1.0, scale)
        return scale * oracles.newton_schulz(g, steps)

    return lmo


def their_sign():
    return lambda g: np.sign(g) / g.shape[1]


def their_col_norm():
    # ColNorm: g over ‖column‖₂/√rows.
    return lambda g: g / (np.linalg.norm(g, axis=0, keepdims=True) / g.shape[0] ** 0.5)


def their_row_norm():
    # RowNorm, normalized: g over ‖row‖₂·√columns.
    return lambda g: g / (np.linalg.norm(g, axis=1, keepdims=True) * g.shape[1] ** 0.5)


THEIR_NORMS = {
    "Spectral": their_spectral,
    "Sign": their_sign,
    "ColNorm": their_col_norm,
    "RowNorm": their_row_norm,
}
