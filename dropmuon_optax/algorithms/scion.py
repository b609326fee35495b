"""Scion: Gluon's step in norms chosen for the layers' sides (arXiv:2502.07529).

    Input: X⁰, stepsize γ, momentum α = 1 − β, radii ρᵢ, norms ‖·‖₍ᵢ₎; M⁻¹ = 0
      for k = 0, 1, 2, …
        1. Mᵏ   = (1 − α) Mᵏ⁻¹ + α ∇f(Xᵏ; ξᵏ)
        2. Xᵏ⁺¹ = Xᵏ + γρ·lmo(Mᵏ)                 unconstrained Scion
           Xᵏ⁺¹ = (1 − γ)Xᵏ + γρ·lmo(Mᵏ)          constrained Scion (Frank–Wolfe)
      with lmo(M) = argmin {⟨M, x⟩ : ‖x‖ ≤ 1}, layer by layer

`momentum` is β, the weight of the old buffer (0.9), not the authors' α (0.1).
No Nesterov momentum, and no weight decay: the constrained step shrinks the weights.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dropmuon_optax import checks
from dropmuon_optax.algorithms.gluon import gluon
from dropmuon_optax.layers import LayersFn, layers_by_path
from dropmuon_optax.layers.geometry import ball_geometry
from dropmuon_optax.layers.leaves import AdaptiveRadius, join
from dropmuon_optax.lmo import tree_lmo


def scion(
    learning_rate: optax.ScalarOrSchedule,
    layers: LayersFn | None = None,
    *,
    momentum: optax.ScalarOrSchedule = 0.9,
    constrained: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Scion: Xᵢ ← (1 − γ)Xᵢ + γ·argmin {⟨Mᵢ, x⟩ : ‖x‖₍ᵢ₎ ≤ ρᵢ}.

    The balls of the constrained step are as exact as the oracles. With the default,
    five steps of Keller Jordan's, spectral norms stay below 1.2024 ρᵢ, the largest
    value of the polynomial, not below ρᵢ: on a constant gradient they stand at 1.13 ρᵢ.
    `Spectral(num_steps=None)` and `Spectral(8, linalg.POLAR_EXPRESS)` keep them in ρᵢ.

    In bfloat16 an update below half a rounding of its weight is lost. With a constant γ
    weights on their way to ρᵢ stall at γ/(γ + 2⁻⁸) to γ/(γ + 2⁻⁹) of it, 72 % to 84 %
    for 0.01 and 20 % to 34 % for 0.001. Keep the parameters in float32 and cast them to
    bfloat16 in the loss; the optimizer then sees float32 alone.

    Args:
      learning_rate: γ, a number or a schedule; a constrained step needs γ ≤ 1.
      layers: a function from the parameters to a tree of `Layer`s with radii ρᵢ; None
        is Scion's norms by name and shape, `ball_geometry` (radius 8 for matrices, 128
        for heads) or, unconstrained, `scion_geometry` (1 and 16).
      momentum: β in [0, 1), the weight of the old buffer.
      constrained: whether the weights stay in the balls {‖Xᵢ‖₍ᵢ₎ ≤ ρᵢ} once they are
        (see `init_on_ball`); else the step is X ← X + γ·argmin, with no shrink.

    Returns:
      A transformation whose updates have the parameters' dtype.

    Raises:
      ValueError: if an argument is out of range, or from `init` if a leaf has no norm.

    Examples:
      >>> from dropmuon_optax import norms
      >>> tx = scion(0.1, layers_by_path(None, [("", norms.MaxEntry(), 3.0)]))
      >>> x = jnp.array([1.0, -1.0])
      >>> tx.update(x, tx.init(x), x)[0].round(3)
      Array([-0.4,  0.4], dtype=float32)

    References:
      Pethick, Xie, Antonakopoulos, Zhu, Silveti-Falls, Cevher, Training Deep Learning
      Models with Norm-Constrained LMOs, arXiv:2502.07529, Algorithms 1 and 2.
    """
    return gluon(learning_rate, layers, momentum, constrained=constrained)


def init_on_ball(params: Any, layers: LayersFn | None = None, *, key: jax.Array) -> Any:
    """New weights on the boundary of the balls: ‖Xᵢ‖₍ᵢ₎ = ρᵢ, as Scion starts.

    Each is −LMO of a Gaussian matrix: a random orthogonal matrix for the spectral norm,
    random signs for the largest entry, random directions for rows and columns. Vectors
    (biases, scales) keep their values, as zero biases do in the authors' code. With
    Newton–Schulz oracles the norm is as near ρᵢ as they are exact.

    Args:
      params: a tree of weights, for shapes, dtypes and the values of vectors.
      layers: a function from the parameters to a tree of `Layer`s; None is
        `layers_by_path(None, ball_geometry)`.
      key: a PRNG key.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: if a leaf has `norm=None`, a radius that is no number, or is not of
        real numbers, naming its path; if `key` is no PRNG key.

    Examples:
      >>> from dropmuon_optax import norms
      >>> layers = layers_by_path(None, [("", norms.MaxEntry(), 3.0)])
      >>> x = init_on_ball(jnp.zeros((2, 5)), layers, key=jax.random.key(0))
      >>> jnp.abs(x).tolist()
      [[3.0, 3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 3.0, 3.0, 3.0]]

    References:
      Pethick et al., arXiv:2502.07529; `init` in github.com/LIONS-EPFL/scion.
    """
    _check_key(key)
    layers = layers_by_path(None, ball_geometry) if layers is None else layers
    leaves = join(layers, params)
    gaussians = []
    for number, leaf in enumerate(leaves):
        checks.is_inexact(leaf.path, leaf.value, jnp.floating)
        if isinstance(leaf.layer.radius, AdaptiveRadius) or callable(leaf.layer.radius):
            raise ValueError(
                f"the leaf {leaf.path!r} must have a fixed radius to start on its "
                f"ball, got {leaf.layer.radius}"
            )
        noise = jax.random.normal(
            jax.random.fold_in(key, number), jnp.shape(leaf.value)
        )
        gaussians.append(noise.astype(jnp.result_type(leaf.value)))
    structure = jax.tree.structure(params)
    steps = tree_lmo(layers, jax.tree.unflatten(structure, gaussians), count=0)
    kept = [
        leaf.value if not leaf.view.fan_in else step
        for leaf, step in zip(leaves, jax.tree.leaves(steps), strict=True)
    ]
    return jax.tree.unflatten(structure, kept)


def _check_key(key: Any) -> None:
    """Refuses what is no PRNG key, typed or raw."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32 and shape == jax.random.key_data(jax.random.key(0)).shape
    if not raw and not (typed and shape == ()):
        raise ValueError(
            f"`key` must be one PRNG key, such as jax.random.key(0), got {key!r}"
        )
