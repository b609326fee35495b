"""EF21-Muon: LMO steps on gradients sent in small pieces (arXiv:2510.00643).

The algorithm's box is in `ef21`, rotated to begin at the gradient, as Optax calls it;
this is that box with the LMO of each layer's norm as its line 4. The loop's parameters
are W, where workers differentiate, and its updates are the message S; the iterate X,
which the theory bounds, is in the state: evaluate at `ef21_muon_eval_params`.
"""

import warnings
from typing import Any

import jax
import optax
from jax.typing import DTypeLike

from dropmuon_optax import checks
from dropmuon_optax.algorithms.ef21 import ef21
from dropmuon_optax.algorithms.gluon import (
    Mask,
    add_weights,
    descend,
    effective_decay,
)
from dropmuon_optax.compressors import Compressor, Identity
from dropmuon_optax.layers import LayersFn
from dropmuon_optax.layers.leaves import AdaptiveRadius, path_of
from dropmuon_optax.layers.rules import Rules
from dropmuon_optax.wire.ownership import WORK_SHARE
from dropmuon_optax.wire.server import EF21State, iterate


def ef21_muon(
    learning_rate: optax.ScalarOrSchedule,
    layers: LayersFn,
    worker_compressor: Compressor | Rules,
    server_compressor: Compressor | Rules | None = None,
    momentum: optax.ScalarOrSchedule = 0.9,
    *,
    axis_name: str = "data",
    num_workers: int,
    topology: str = "owner",
    local_axis_name: str | None = None,
    constrained: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = None,
    initial: str = "zeros",
    momentum_dtype: DTypeLike | None = None,
    num_layers: int | None = None,
    work_share: float | None = None,
    relays: bool = False,
    key: Any,
) -> optax.GradientTransformationExtraArgs:
    """LMO steps X ← argmin {⟨G, x⟩ : ‖x − X‖ ≤ t}, G being sent in small pieces.

    Run it through `worker_map`, on gradients that are each worker's own (`local_params`
    sees to it), and let nothing follow it in a chain: the update is the message S.
    Clip gradients before it, accumulate them before it.

    Args:
      learning_rate: γ, a number or a schedule of the step count k; tᵏ = γ(k)·radius.
      layers: a function from the parameters to a tree of `Layer`s.
      worker_compressor: 𝒞_j, from workers to server: a compressor of matrices (vectors
        then go dense), or a list of (regex over paths, compressor).
      server_compressor: 𝒞, from server to workers, likewise; None is dense, X = W.
      momentum: 1 − β in [0, 1), the weight of the old momentum; a number or a schedule.
        A plain 0 keeps no M_j.
      axis_name: the axis of the workers.
      num_workers: n, its size. A single worker needs no axis.
      topology: "owner": every matrix has an owner, which gets its messages from all
        workers, takes its LMO and broadcasts its step (matrices of all shapes are
        shared out together, and every letter is as long as the longest: with fewer
        matrices than workers the largest one sets what is sent); "gather": every worker
        gets all messages and is the server, which pays for few workers alone.
      local_axis_name: the axis of the devices of one worker, if it has several (a
        node): gradients are averaged over it densely, and messages carried together.
      constrained: whether X stays in the ball of its radius, as in `gluon`.
      weight_decay: λ ≥ 0, decoupled: X ← X − γλX besides; a number or a schedule of k.
        Not in the paper.
      weight_decay_mask: as in `gluon`; leaves that decay share no stack with others.
      initial: "zeros": M_j⁻¹ = 0; or "gradient": M_j⁰ is the first gradient, so that
        G_j⁰ = 𝒞_j(∇f_j(W⁰)) (the paper begins at G_j⁰ = ∇f_j(W⁰) itself).
      momentum_dtype: dtype of M_j; None is the parameters', or float32 for float16. G_j
        and G are float32.
      num_layers: as in `drop_layers`, for an `update` with `active`.
      work_share: what owners are balanced by, in [0, 1]: 0, the bytes they send; 1, the
        oracle's work, which the busiest of each shape sets for all; None is 0.25.
        `describe_owners` shows both.
      relays: whether a matrix that is more than a worker's share of all bytes is
        compressed and sent in blocks of rows: others than its owner average a block
        each and pass the mean on to it, dense; its step goes out likewise, compressed.
        For more workers than there are large matrices: it evens out what is sent.
      key: a Threefry key, typed or raw, for random compressors.

    Returns:
      A transformation whose updates are S in the parameters' dtype. A gradient that is
      not finite makes S of its matrix NaN, then and at every later step, for G_j and G
      remember it: go back to a state from before. Its `update` takes
      `active`, a static tuple of bools: layers that don't move are not compressed, sent
      or stepped, and keep their memories bit for bit.

    Raises:
      ValueError: if an argument is out of range; from `init` if a leaf has no norm or a
        compressor doesn't fit it; from `update` if the axis isn't in scope or of
        another size, or the state is of another tree or number of workers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from dropmuon_optax.compressors import TopK
      >>> from dropmuon_optax.layers import layers_by_path
      >>> params = {"kernel": jnp.eye(64)}
      >>> tx = ef21_muon(
      ...     0.1, layers_by_path(None), TopK(0.1), num_workers=1, key=jax.random.key(0)
      ... )
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].shape
      (64, 64)

    References:
      Gruntkowska, Gaponov, Tovmasyan, Richtárik, Error feedback for Muon and friends,
      arXiv:2510.00643.
    """
    decay = effective_decay(weight_decay, weight_decay_mask, constrained)
    if server_compressor not in (None, Identity()):
        layers = _warned(layers)
    inner = optax.chain(
        scale_by_oracle(),
        add_decay(decay),
        descend(learning_rate),
    )
    return ef21(
        inner,
        layers,
        worker_compressor,
        server_compressor,
        momentum,
        axis_name=axis_name,
        num_workers=num_workers,
        topology=topology,
        local_axis_name=local_axis_name,
        initial=initial,
        momentum_dtype=momentum_dtype,
        num_layers=num_layers,
        work_share=WORK_SHARE if work_share is None else work_share,
        relays=relays,
        weight_decay_mask=weight_decay_mask,
        key=key,
    )


def _warned(layers: LayersFn) -> LayersFn:
    """`layers`, with a warning where a radius has no theory behind it."""
    checks.is_function("layers", layers)

    def with_warning(params: Any) -> Any:
        tree = layers(params)
        if any(isinstance(x.radius, AdaptiveRadius) for x in jax.tree.leaves(tree)):
            warnings.warn(
                "the (L⁰, L¹) radii of `AdaptiveRadius` are proven with the identity "
                "as `server_compressor` only (arXiv:2510.00643, Theorem 17)",
                stacklevel=2,
            )
        return tree

    return with_warning


def scale_by_oracle() -> optax.GradientTransformationExtraArgs:
    """Line 4's direction: −LMO of each matrix, by the `oracle` that `ef21` gives."""

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        del params
        return extra["oracle"](updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def add_decay(
    weight_decay: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """`add_weights` of the stacks that `ef21` says decay."""
    everywhere = add_weights(weight_decay)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        some = add_weights(weight_decay, extra["decays"])
        return some.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(everywhere.init, update)


def ef21_muon_eval_params(state: Any, params: Any) -> Any:
    """X, the iterate that the theory bounds: evaluate and keep this one, not W.

    Args:
      state: the optimizer's state, or any that contains it (of a chain, a partition).
      params: W, the parameters of the loop.

    Returns:
      X as a tree like `params`, in their dtypes; leaves that the transformation doesn't
      move are those of `params`, and without a server's compressor all are: X = W.

    Raises:
      ValueError: if there is no such state, or only one worker's part of it.

    Examples:
      >>> import jax.numpy as jnp
      >>> from dropmuon_optax.compressors import Natural
      >>> from dropmuon_optax.layers import layers_by_path
      >>> params = {"kernel": jnp.eye(4)}
      >>> key, layers = jax.random.key(0), layers_by_path(None)
      >>> tx = ef21_muon(0.1, layers, Natural(), Natural(), num_workers=1, key=key)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> X = ef21_muon_eval_params(state, params)["kernel"]
      >>> bool(jnp.all(X == optax.apply_updates(params, updates)["kernel"]))
      False

    References:
      arXiv:2510.00643, Algorithm 1 (X and W).
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, EF21State))
    found = [node for node in nodes if isinstance(node, EF21State)]
    if not found:
        raise ValueError(
            f"`state` must contain the state of `ef21_muon`, got {state!r}"
        )
    X = {}
    for node in found:
        X.update(iterate(node.server))
    return jax.tree_util.tree_map_with_path(
        lambda keys, w: X.get(path_of(keys), w).astype(w.dtype), params
    )


def ef21_muon_horizon(num_steps: int, eta: float = 1.0) -> tuple[float, float]:
    """Learning rate and momentum of the (L⁰, L¹) theorem for K steps.

    β = (K + 1)^(−1/2) and tᵢ = ηᵢ(K + 1)^(−3/4), for stochastic gradients; it holds
    for the identity as the server's compressor only, and for ηᵢ ≤ 1 that are small
    enough against the layers' L¹.

    Args:
      num_steps: K.
      eta: η, in (0, 1].

    Returns:
      (learning_rate, momentum) for `ef21_muon`; the momentum is 1 − β.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> ef21_muon_horizon(15)
      (0.125, 0.75)

    References:
      arXiv:2510.00643, Theorem 24.
    """
    checks.positive_int("num_steps", num_steps)
    checks.in_range("eta", eta, 0.0, 1.0, open_low=True)
    return eta * (num_steps + 1) ** -0.75, 1 - (num_steps + 1) ** -0.5
