"""From measured smoothness to the radii of Gluon's Theorem 1.

    tᵢᵏ = ‖∇ᵢf(Xᵏ)‖⋆ / (L⁰ᵢ + L¹ᵢ‖∇ᵢf(Xᵏ)‖⋆)

The theorem is for deterministic gradients; for stochastic ones the paper has none with
adaptive radii.

References:
  Riabinin et al., Gluon, arXiv:2505.13416, Theorem 1.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax

from dropmuon_optax import checks
from dropmuon_optax.layers.leaves import AdaptiveRadius, LayersFn, Leaf, join
from dropmuon_optax.theory.estimates import ECHO, SmoothnessFit


def estimated_layers(
    layers: LayersFn,
    fits: Sequence[SmoothnessFit],
    rule: Literal["adaptive", "constant"] = "adaptive",
    max_honesty: float = ECHO,
) -> LayersFn:
    """`layers` with the radii that the fits give: `gluon(1.0, …)` runs on them.

    - "adaptive": Theorem 1's radius at each step, `AdaptiveRadius(L⁰, L¹)`.
    - "constant": its value at the median gradient, 1/L¹ where L⁰ = 0.

    Of a leaf that is several matrices the largest L⁰ and L¹ count, or the smallest
    radius: each of them satisfies Assumption 1 with those.

    Args:
      layers: the function that the points were measured with.
      fits: as `fit_smoothness` returns them.
      rule: which radius.
      max_honesty: the largest h accepted. A fit above it is an echo of the step that
        was used; `math.inf` takes even those.

    Returns:
      A function from the parameters to a tree of `Layer`s.

    Raises:
      ValueError: if a fit is refused, or gives no finite radius; when the function is
        called, if a leaf has a norm but no fit. Each names the path.

    Examples:
      >>> import jax.numpy as jnp
      >>> from dropmuon_optax import norms
      >>> from dropmuon_optax.layers import layers_by_path
      >>> layers = layers_by_path(None, [("", norms.MaxEntry(), 1.0)])
      >>> fit = SmoothnessFit("w", norms.MaxEntry(), 1.0, 2.0, 0.0, 0.1, 0.1, 1.0, 9)
      >>> estimated_layers(layers, [fit])({"w": jnp.ones(3)})
      {'w': Layer(None, MaxEntry(), radius=AdaptiveRadius(1.0, 2.0))}
    """
    checks.is_function("layers", layers)
    checks.in_range("max_honesty", max_honesty, 0.0)
    if rule not in ("adaptive", "constant"):
        raise ValueError(f'`rule` must be "adaptive" or "constant", got {rule!r}')
    by_leaf: dict[str, list[SmoothnessFit]] = {}
    for fit in fits:
        if not fit.honesty <= max_honesty:
            raise ValueError(
                f"the fit of {fit.name!r} must have h ≤ {max_honesty} to be used, got "
                f"{fit.honesty:.3g} ({fit.verdict}); measure at smaller `shares`"
            )
        if not fit.radius < math.inf:
            raise ValueError(f"the fit of {fit.name!r} gives no finite radius: {fit}")
        by_leaf.setdefault(fit.path, []).append(fit)

    def radius(leaf: Leaf) -> float | AdaptiveRadius:
        found = by_leaf.get(leaf.path)
        if found is None:
            raise ValueError(f"`fits` must have one for the leaf {leaf.path!r}")
        if rule == "constant":
            return min(fit.radius for fit in found)
        return AdaptiveRadius(max(f.l0 for f in found), max(f.l1 for f in found))

    def estimated(params: Any) -> Any:
        tree = [
            leaf.layer
            if leaf.layer.norm is None
            else dataclasses.replace(leaf.layer, radius=radius(leaf))
            for leaf in join(layers, params)
        ]
        return jax.tree.unflatten(jax.tree.structure(params), tree)

    return estimated
