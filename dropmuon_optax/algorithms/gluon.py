"""Gluon: layer-wise linear minimization oracles over momentum (arXiv:2505.13416).

    Algorithm 1.  Input: X⁰, momentum β, radii tᵢᵏ, norms ‖·‖₍ᵢ₎ for layers i = 1, …, b
      for k = 0, 1, 2, …
        for each layer i
          1. sample ξᵏ, compute the stochastic gradient ∇ᵢf(Xᵏ; ξᵏ)
          2. Mᵢᵏ   = β Mᵢᵏ⁻¹ + (1 − β) ∇ᵢf(Xᵏ; ξᵏ)
          3. Xᵢᵏ⁺¹ = LMO over B(Xᵢᵏ, tᵢᵏ) of Mᵢᵏ
                   = Xᵢᵏ + argmin {⟨Mᵢᵏ, x⟩ : ‖x‖₍ᵢ₎ ≤ tᵢᵏ}

Here k counts from 0, M⁻¹ = 0 as in the Muon and Scion codes (with the momentum schedule
of Theorem 2, β⁰ = 0, so M⁰ is the first gradient as the theorem asks), and
tᵢᵏ = learning_rate(k)·radiusᵢ. Muon and Scion are this algorithm in their own norms.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from dropmuon_optax import checks, linalg
from dropmuon_optax.layers import LayersFn, layers_by_path
from dropmuon_optax.layers.geometry import ball_geometry, scion_geometry
from dropmuon_optax.layers.trees import check_mask, checked, masked_by, ranged
from dropmuon_optax.lmo import CountState, first_count, scale_by_lmo

Mask = Any | Callable[[Any], Any]  # a tree of bools, or a function that returns one


def gluon(
    learning_rate: optax.ScalarOrSchedule,
    layers: LayersFn | None = None,
    momentum: optax.ScalarOrSchedule = 0.9,
    *,
    nesterov: bool = False,
    constrained: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = None,
    momentum_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Layer-wise LMO steps: Xᵢ ← Xᵢ + argmin {⟨Mᵢ, x⟩ : ‖x‖₍ᵢ₎ ≤ tᵢ}.

    Args:
      learning_rate: γ, a number or a schedule of the step count k; the step's length in
        layer i's norm is tᵢᵏ = γ(k)·radiusᵢ. For a layer with an `AdaptiveRadius` give
        1.0 (Theorem 1).
      layers: a function from the parameters to a tree of `Layer`s; None is Scion's
        norms by name and shape, `scion_geometry` or, if constrained, `ball_geometry`.
      momentum: β in [0, 1), the weight of the old momentum; a number or a schedule.
      nesterov: whether the oracle sees (1 − β)g + βM in place of M. Not in the paper.
      constrained: whether Xᵢ stays in the ball of its radius, by the Frank–Wolfe step
        Xᵢ ← (1 − γ)Xᵢ + γ·argmin {⟨Mᵢ, x⟩ : ‖x‖₍ᵢ₎ ≤ radiusᵢ}.
      weight_decay: λ ≥ 0, decoupled: X ← X − γλX besides; a number or a schedule of k.
        Not in the paper.
      weight_decay_mask: which leaves decay: a tree of bools (or its top), or a function
        from the parameters to one; None is all, biases and scales too.
      momentum_dtype: dtype of M; None is the parameters', or float32 for float16.

    Returns:
      A transformation whose updates have the parameters' dtype.

    Raises:
      ValueError: if an argument is out of range, or from `init` if a leaf has no norm.

    Examples:
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> tx = gluon(0.1)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> [update.shape for update in jax.tree.leaves(updates)]
      [(2,), (2, 2)]

    References:
      Riabinin, Shulgin, Gruntkowska, Richtárik, Gluon, arXiv:2505.13416, Algorithm 1.
    """
    decay = effective_decay(weight_decay, weight_decay_mask, constrained)
    if layers is None:
        layers = layers_by_path(None, ball_geometry if constrained else scion_geometry)
    step = optax.chain(
        scale_by_momentum(momentum, nesterov=nesterov, momentum_dtype=momentum_dtype),
        scale_by_lmo(layers),
        add_weights(decay, weight_decay_mask),
        descend(learning_rate),
    )
    return checked(ranged(step), moves_all=True)


def effective_decay(
    weight_decay: optax.ScalarOrSchedule, mask: Mask, constrained: bool
) -> optax.ScalarOrSchedule:
    """The λ of a step: the Frank–Wolfe step −γ(−LMO + X) is a plain one with λ = 1.

    Raises:
      ValueError: if `weight_decay` or a mask is given to a constrained step.
    """
    checks.is_flag("constrained", constrained)
    check_decay(None if constrained else mask, weight_decay=weight_decay)
    if not constrained:
        return weight_decay
    numbers = checks.is_concrete(weight_decay) or callable(weight_decay)
    if (numbers and weight_decay != 0) or mask is not None:
        raise ValueError(
            "`weight_decay` must be 0, without a mask, where `constrained` is True "
            f"(the step shrinks X by 1 − γ already), got {weight_decay!r} and {mask!r}"
        )
    return 1.0


def check_decay(mask: Mask = None, **decays: Any) -> None:
    """Refuses what is neither a number ≥ 0 nor a schedule, and a mask of nothing."""
    for name, value in decays.items():
        checks.in_range(name, value, 0.0, math.inf, open_high=True, schedule=True)
    plain = [checks.is_concrete(value) and value == 0 for value in decays.values()]
    if mask is not None and all(plain):
        raise ValueError(
            "`weight_decay_mask` must be None where nothing decays, got a mask and "
            + ", ".join(f"{name}={value!r}" for name, value in decays.items())
        )


class MomentumState(NamedTuple):
    """State of `scale_by_momentum`."""

    count: Any  # k, steps taken, int32 of shape ()  # pyright: ignore
    momentum: Any  # M, as the parameters, in units of the gradient


def scale_by_momentum(
    momentum: optax.ScalarOrSchedule = 0.9,
    *,
    nesterov: bool = False,
    momentum_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum as an exponential moving average: Mᵏ = β Mᵏ⁻¹ + (1 − β) gᵏ.

    Args:
      momentum: β in [0, 1), the weight of the old buffer; a number or a schedule.
      nesterov: whether to return (1 − β)gᵏ + βMᵏ (the `lerp` form of Keller Jordan's
        and PyTorch's Muon, without bias correction) in place of Mᵏ.
      momentum_dtype: dtype of M; None is the parameters', or float32 for float16. The
        average itself is taken in float32 or wider, where what (1 − β)g leaves below
        1.2e-38 counts as zero, as in all of XLA's arithmetic.

    Returns:
      A transformation whose updates have the gradients' dtype. What is not finite stays
      in M, and so in every later update of that entry.

    Raises:
      ValueError: if `momentum` is a number outside [0, 1); from `init`, if what is no
        parameter is among these.

    Examples:
      >>> tx = scale_by_momentum(0.5)
      >>> g = jnp.array([4.0])
      >>> _, state = tx.update(g, tx.init(g))
      >>> tx.update(g, state)[0].item()
      3.0

    References:
      Gluon, arXiv:2505.13416, Algorithm 1, line 2.
    """
    checks.is_momentum("momentum", momentum)
    checks.is_flag("nesterov", nesterov)
    dtype = checks.float_dtype("momentum_dtype", momentum_dtype)

    def init(params: Any) -> MomentumState:
        def zeros(p: Any) -> Array:
            return jnp.zeros_like(p, dtype=dtype or linalg.ranged_dtype(p))

        return MomentumState(jnp.zeros((), jnp.int32), jax.tree.map(zeros, params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, MomentumState]:
        del params, extra
        beta = momentum(state.count) if callable(momentum) else momentum

        def lerp(old: Array, new: Array, out: Array) -> Array:
            wide = linalg.wide_dtype(old, new)
            b = jnp.asarray(beta, wide)
            mean = b * old.astype(wide) + (1 - b) * new.astype(wide)
            return mean.astype(out.dtype)

        buffer = jax.tree.map(lambda m, g: lerp(m, g, m), state.momentum, updates)
        seen = jax.tree.map(
            lambda m, g: lerp(m, g, g) if nesterov else m.astype(g.dtype),
            buffer,
            updates,
        )
        return seen, MomentumState(optax.safe_increment(state.count), buffer)

    kind = jnp.inexact if dtype is None else jnp.floating
    return checked(optax.GradientTransformationExtraArgs(init, update), kind)


def add_weights(
    weight_decay: optax.ScalarOrSchedule, mask: Mask = None
) -> optax.GradientTransformationExtraArgs:
    """Adds λX to the updates, and gives them the parameters' dtype.

    Args:
      weight_decay: λ, a number or a schedule; a plain 0 needs no parameters.
      mask: which leaves it is added for; None is all.

    Returns:
      A transformation whose state is the step count, if λ follows it.

    Raises:
      ValueError: if `mask` is none; from `update`, if `params` is missing and λ is not
        a plain 0.
    """
    check_mask(mask)
    needless = checks.is_concrete(weight_decay) and weight_decay == 0

    def init(params: Any) -> Any:
        masked_by(mask, params)
        return first_count() if callable(weight_decay) else optax.EmptyState()

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del extra
        value: Any = weight_decay
        if callable(weight_decay):
            value = weight_decay(state.count)
            state = CountState(optax.safe_increment(state.count))
        if params is None:
            if needless:
                return updates, state
            raise ValueError(
                "`params` must be given to `update` with weight decay or a constraint, "
                "got None"
            )

        def add(g: Array, x: Array, decays: bool) -> Array:
            added = jnp.asarray(value, x.dtype) * x if decays and not needless else 0
            return g.astype(x.dtype) + added

        return jax.tree.map(add, updates, params, masked_by(mask, params)), state

    return optax.GradientTransformationExtraArgs(init, update)


def descend(
    learning_rate: optax.ScalarOrSchedule, name: str = "learning_rate"
) -> optax.GradientTransformation:
    """The end of the chain: updates become −γ(k) times themselves, in their dtype.

    A number counts as a constant schedule, because `optax.scale_by_learning_rate` keeps
    the updates' dtype for schedules alone.

    Raises:
      ValueError: if it is neither a number of at least 0 nor a schedule.
    """
    checks.in_range(name, learning_rate, 0.0, math.inf, open_high=True, schedule=True)
    if callable(learning_rate):
        return optax.scale_by_learning_rate(learning_rate)
    return optax.scale_by_learning_rate(lambda count: learning_rate)


def gluon_momentum_schedule() -> optax.Schedule:
    """βᵏ = 1 − (k + 1)^(−1/2), the momentum of Gluon's stochastic rule.

    Examples:
      >>> gluon_momentum_schedule()(jnp.array([0, 3]))
      Array([0. , 0.5], dtype=float32)

    References:
      Gluon, arXiv:2505.13416, Theorem 2.
    """
    return lambda count: 1 - _power(count, -0.5)


def gluon_learning_rate_schedule(t: float) -> optax.Schedule:
    """tᵏ = t·(k + 1)^(−3/4), the radius of Gluon's stochastic rule.

    Args:
      t: the first radius, in units of the layer's norm, divided by `Layer.radius`.

    Raises:
      ValueError: if `t` is negative.

    Examples:
      >>> gluon_learning_rate_schedule(8.0)(jnp.array([0, 15]))
      Array([8., 1.], dtype=float32)

    References:
      Gluon, arXiv:2505.13416, Theorem 2.
    """
    checks.in_range("t", t, 0.0, math.inf, open_high=True)
    return lambda count: t * _power(count, -0.75)


def _power(count: ArrayLike, exponent: float) -> Array:
    """(k + 1)^exponent, in JAX's default floating-point dtype."""
    return jnp.asarray(count + 1, jnp.result_type(float)) ** exponent
