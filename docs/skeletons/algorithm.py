"""Heavy ball with an LMO, to be copied to `dropmuon_optax/algorithms/<name>.py`.

    Input: X⁰, momentum β, radii tᵢᵏ, norms ‖·‖₍ᵢ₎ for layers i = 1, …, b;  M⁻¹ = 0
      for k = 0, 1, 2, …
        1. Mᵢᵏ   = β Mᵢᵏ⁻¹ + ∇ᵢf(Xᵏ; ξᵏ)
        2. Xᵢᵏ⁺¹ = Xᵢᵏ + argmin {⟨Mᵢᵏ, x⟩ : ‖x‖₍ᵢ₎ ≤ tᵢᵏ}

The box stands as the paper has it, then what differs here: k counts from 0, and
tᵢᵏ = learning_rate(k)·radiusᵢ. Name the paper, with its number at arXiv.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dropmuon_optax import checks
from dropmuon_optax.algorithms.gluon import descend
from dropmuon_optax.layers import LayersFn
from dropmuon_optax.layers.trees import checked
from dropmuon_optax.lmo import scale_by_lmo


def heavy_ball(
    learning_rate: optax.ScalarOrSchedule, layers: LayersFn, momentum: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    """LMO steps along a sum of gradients: X ← X + argmin {⟨M, x⟩ : ‖x‖ ≤ t}.

    Args:
      learning_rate: γ, a number or a schedule of the step count k; the step's length in
        layer i's norm is tᵢᵏ = γ(k)·radiusᵢ.
      layers: a function from the parameters to a tree of `Layer`s.
      momentum: β in [0, 1), the weight of the old buffer.

    Returns:
      A transformation whose updates have the gradients' dtype.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> from dropmuon_optax.layers import layers_by_path
      >>> from dropmuon_optax.norms import MaxEntry
      >>> tx = heavy_ball(0.1, layers_by_path(None, [("", MaxEntry(), 1.0)]))
      >>> x = jnp.array([3.0, -4.0])
      >>> updates, state = tx.update(x, tx.init(x), x)
      >>> print(updates)
      [-0.1  0.1]
    """
    return checked(
        optax.chain(
            add_momentum(momentum),  # 1.
            scale_by_lmo(layers),  # 2. It returns −LMO; `descend` multiplies by −γ.
            descend(learning_rate),
        )
    )


class HeavyBallState(NamedTuple):
    """State of `add_momentum`: what the next step needs, and no more."""

    momentum: Any  # M, as the parameters, in units of the gradient


def add_momentum(momentum: float) -> optax.GradientTransformation:
    """Mᵏ = β Mᵏ⁻¹ + gᵏ."""
    checks.is_momentum("momentum", momentum)

    def init(params: Any) -> HeavyBallState:
        return HeavyBallState(jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: Any, state: HeavyBallState, params: Any = None
    ) -> tuple[Any, HeavyBallState]:
        del params
        # 1. Mᵢ = β Mᵢ + ∇ᵢf(X; ξ)
        sums = jax.tree.map(lambda m, g: momentum * m + g, state.momentum, updates)
        return sums, HeavyBallState(sums)

    return optax.GradientTransformation(init, update)
