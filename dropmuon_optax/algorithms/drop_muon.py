"""Drop-Muon: Gluon's step on a random set of layers (arXiv:2510.02239).

    Input: X⁰, M⁻¹, momentum βᵢ, radii tᵢᵏ, norms ‖·‖₍ᵢ₎ for layers i = 1, …, b,
           a distribution 𝒟 over sets of layers
      for k = 0, 1, 2, …
        1. sample Sᵏ ~ 𝒟
        2. for i ∉ Sᵏ:  Mᵢᵏ = Mᵢᵏ⁻¹,  Xᵢᵏ⁺¹ = Xᵢᵏ
           for i ∈ Sᵏ:
        3.   Mᵢᵏ   = (1 − βᵢ) Mᵢᵏ⁻¹ + βᵢ ∇ᵢf(Xᵏ; ξᵏ)
        4.   Xᵢᵏ⁺¹ = LMO over B(Xᵢᵏ, tᵢᵏ) of Mᵢᵏ
                    = Xᵢᵏ − γᵢᵏ (Mᵢᵏ)♯  with  tᵢᵏ = γᵢᵏ ‖Mᵢᵏ‖₍ᵢ₎⋆

Here k counts from 0, layers from 0 at the input, M⁻¹ = 0, and tᵢᵏ = learning_rate(k)·
radiusᵢ. The paper's βᵢ weighs the new gradient and is 1 − `momentum`. With all layers
in Sᵏ it is Gluon. The box says nothing of Nesterov's momentum or weight decay.
"""

from functools import partial
from typing import Any

import optax
from jax.typing import DTypeLike

from dropmuon_optax.algorithms.drop_layers import drop_layers
from dropmuon_optax.algorithms.gluon import (
    Mask,
    add_weights,
    check_decay,
    descend,
    scale_by_momentum,
)
from dropmuon_optax.layers import LayersFn
from dropmuon_optax.layers.trees import checked, ranged
from dropmuon_optax.lmo import scale_by_lmo
from dropmuon_optax.samplings import Sampling


def drop_muon(
    learning_rate: optax.ScalarOrSchedule,
    layers: LayersFn,
    sampling: Sampling,
    *,
    key: Any,
    momentum: optax.ScalarOrSchedule = 0.9,
    nesterov: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = None,
    momentum_dtype: DTypeLike | None = None,
    num_layers: int | None = None,
    outside: LayersFn | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LMO steps of a random set of layers: Xᵢ ← Xᵢ + argmin {⟨Mᵢ, x⟩ : ‖x‖₍ᵢ₎ ≤ tᵢ}.

    Args:
      learning_rate: γ, a number or a schedule of the step count k; the step's length in
        layer i's norm is tᵢᵏ = γ(k)·radiusᵢ.
      layers: a function from the parameters to a tree of `Layer`s with indices.
      sampling: the distribution 𝒟 of the set of layers that move.
      key: a Threefry key, typed or raw, from which the sets are drawn.
      momentum: 1 − β in [0, 1), the weight of the old momentum; a number or a schedule.
      nesterov: whether the oracle sees βg + (1 − β)M in place of M. Not in the paper.
      weight_decay: λ ≥ 0, decoupled, for the layers that move: Xᵢ ← Xᵢ − γλXᵢ besides.
        Not in the paper.
      weight_decay_mask: as in `gluon`.
      momentum_dtype: dtype of M; None is the parameters'.
      num_layers: as in `drop_layers`.
      outside: None freezes the layers outside Sᵏ, as the paper does. A function to
        `Layer`s, of sign norms say, has them take −LMO steps of the same momentum in
        those norms and radii: it is the oracle that is dropped, not the layer. All
        momenta move and all layers decay then; so hand `value_and_grad` no `active`:
        the gradients of all layers are needed. With a sign norm and `Periodic(P)` it is
        the SignMuon of the LionMuon paper, whose two averages are one: a spectral step
        at every P-th step and a sign step at the others.

    Returns:
      A transformation whose `update` takes `active`, as that of `drop_layers` does, and
      whose updates have the parameters' dtype.

    Raises:
      ValueError: if an argument is out of range, or from `init` as in `drop_layers`.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from dropmuon_optax.layers import layers_by_path
      >>> from dropmuon_optax.samplings import Progressive
      >>> params = {"embed": jnp.ones((4, 2)), "head": jnp.ones((2, 4))}
      >>> layers = layers_by_path(order=["embed", "head"])
      >>> tx = drop_muon(0.1, layers, Progressive(), key=jax.random.key(0))
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params, active=(False, True))
      >>> bool(jnp.any(updates["embed"])), bool(jnp.any(updates["head"]))
      (False, True)

    References:
      Gruntkowska, Maziane, Qu, Richtárik, Drop-Muon: Update less, converge faster,
      arXiv:2510.02239. LionMuon: Alternating spectral and sign descent for efficient
      training, arXiv:2605.19811.
    """
    # The paper's β = 1 − momentum; `scale_by_momentum` takes the old buffer's weight.
    check_decay(weight_decay_mask, weight_decay=weight_decay)
    # 3. Mᵢ = (1 − β) Mᵢ + β ∇ᵢf(X; ξ)
    mix = scale_by_momentum(momentum, nesterov=nesterov, momentum_dtype=momentum_dtype)
    # 4. −LMO of Mᵢ; `descend` multiplies it by −γ
    oracle = scale_by_lmo(layers)
    end = (add_weights(weight_decay, weight_decay_mask), descend(learning_rate))
    drop = partial(
        drop_layers,
        layers=layers,
        sampling=sampling,
        key=key,
        num_layers=num_layers,
        outside=outside,
    )
    # 1. and 2. around them. The learning rate is inside: outside, −γ·0 + Xᵢ would be
    # computed for frozen layers, which costs a pass over their weights.
    if outside is None:
        return drop(ranged(optax.chain(mix, oracle, *end)))
    return checked(ranged(optax.chain(mix, drop(oracle), *end)))
