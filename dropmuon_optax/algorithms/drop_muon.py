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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool

from dropmuon_optax import checks
from dropmuon_optax.algorithms.gluon import (
    Mask,
    add_weights,
    check_decay,
    descend,
    scale_by_momentum,
)
from dropmuon_optax.layers import LayersFn
from dropmuon_optax.layers.parts import (
    Active,
    Owners,
    Part,
    Placement,
    TakesActive,
    cast,
    check_active,
    narrow,
    narrow_state,
    place,
    widen,
    widen_state,
)
from dropmuon_optax.layers.trees import checked, ranged
from dropmuon_optax.lmo import scale_by_lmo
from dropmuon_optax.samplings import Sampling
from dropmuon_optax.samplings.draws import threefry_key


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
      momentum_dtype: as in `gluon`.
      num_layers: as in `drop_layers`.

    Returns:
      A transformation whose `update` takes `active`, as that of `drop_layers` does, and
      whose updates have the parameters' dtype.

    Raises:
      ValueError: if an argument is out of range, or from `init` as in `drop_layers`.

    Examples:
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
      arXiv:2510.02239.
    """
    # The paper's β = 1 − momentum; `scale_by_momentum` takes the old buffer's weight.
    check_decay(weight_decay_mask, weight_decay=weight_decay)
    step = optax.chain(
        # 3. Mᵢ = (1 − β) Mᵢ + β ∇ᵢf(X; ξ)
        scale_by_momentum(momentum, nesterov=nesterov, momentum_dtype=momentum_dtype),
        # 4. −LMO of Mᵢ; `descend` multiplies it by −γ
        scale_by_lmo(layers),
        add_weights(weight_decay, weight_decay_mask),
        descend(learning_rate),
    )
    # 1. and 2. around them. The learning rate is inside: outside, −γ·0 + Xᵢ would be
    # computed for frozen layers, which costs a pass over their weights.
    return drop_layers(ranged(step), layers, sampling, key=key, num_layers=num_layers)


class DropState(NamedTuple):
    """State of `drop_layers`."""

    count: Any  # k, steps taken, int32 of shape ()  # pyright: ignore
    key: Any  # the two words of the key, uint32 of shape (2,); never advances
    inner: Any  # state of the inner transformation


def drop_layers(
    inner: optax.GradientTransformation,
    layers: LayersFn,
    sampling: Sampling,
    *,
    key: Any,
    num_layers: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lets `inner` see, at step k, only the layers in a random set Sᵏ.

    The others are frozen: their updates are zeros, so that the weights stay as they are
    bit for bit, and so does all that `inner` remembers of them. What `inner` keeps for
    no parameter in particular, such as the step count of a schedule, goes on.

    `update` takes one more argument, `active`, a tuple of b bools:

    - given (static under jit), they are the layers that move, and nothing of `inner`
      for the others is in the program. Give it what `active_layers` returns;
    - None: Sᵏ is drawn inside, from fold_in(key, k), and is the same set. The frozen
      layers' part of `inner` is behind conditionals and does not run.

    In the first form `inner` gets all that moves at once; in the second the layers that
    always move, and then each of the others, so that it must not mix them, as
    `optax.clip_by_global_norm` does (chain that before).

    Args:
      inner: any Optax transformation that may be wrapped in `optax.masked`.
      layers: a function from the parameters to a tree of `Layer`s with indices. If only
        some layers of a `Stacked` leaf move, `inner` gets those alone, as a leaf of
        that length.
      sampling: the distribution of Sᵏ.
      key: a Threefry key, typed or raw. It is kept in the state and never advances, so
        runs resume with the same sets.
      num_layers: the number of layers b, needed where the transformation gets a part of
        the parameters only (inside `optax.partition` or `optax.masked`) and the last
        layer is not in it. None counts the layers.

    Returns:
      A transformation whose updates have the parameters' dtype.

    Raises:
      ValueError: if an argument is none of that; from `init` and `update` if a layer
        has no index or the sampling is one of another number of layers; from `update`
        if `active` isn't a tuple of b bools, or empty where Sᵏ never is.

    Examples:
      >>> from dropmuon_optax.layers import layers_by_path
      >>> from dropmuon_optax.samplings import RoundRobin
      >>> layers = layers_by_path(order=["first", "second"])
      >>> key = jax.random.key(0)
      >>> tx = drop_layers(optax.sgd(1.0), layers, RoundRobin(), key=key)
      >>> params = {"first": jnp.ones(2), "second": jnp.ones(2)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates["first"], updates["second"])
      [-1. -1.] [0. 0.]
    """
    inner = optax.with_extra_args_support(inner)
    checks.is_function("layers", layers)
    checks.positive_int("num_layers", num_layers, optional=True)
    if not isinstance(sampling, Sampling):
        raise ValueError(f"`sampling` must be a sampling, got {sampling!r}")
    words = jax.random.key_data(threefry_key(key))

    def init(params: Any) -> DropState:
        if jax.tree.leaves(params):  # `optax.tree_map_params` comes without
            sampling.check(place(layers, params, num_layers).num_layers)
        # A copy: whoever donates the state keeps the key.
        copy = jnp.array(words, copy=True)
        return DropState(jnp.zeros((), jnp.int32), copy, inner.init(params))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        active: Any = None,
        **extra: Any,
    ) -> tuple[Any, DropState]:
        if not jax.tree.leaves(updates):
            return updates, state._replace(count=optax.safe_increment(state.count))
        placed = place(layers, updates, num_layers)
        b = placed.num_layers
        sampling.check(b)
        call = _Call(inner, updates, state.inner, params, extra)
        if isinstance(inner, TakesActive):
            active = check_active(active, b, empty=sampling.can_be_empty(b))
            new = call._replace(extra={**extra, "active": active}).run()
        elif active is None:
            # 1. sample Sᵏ ~ 𝒟
            of_step = jax.random.fold_in(threefry_key(state.key), state.count)
            drawn = sampling.sample(b, state.count, key=of_step)
            new = _sampled_step(call, placed, drawn, sampling.always(b))
        else:
            active = check_active(active, b, empty=sampling.can_be_empty(b))
            new = _step(call, placed.parts(active))
        count = optax.safe_increment(state.count)
        return new.updates, DropState(count, state.key, new.state)

    tx = optax.GradientTransformationExtraArgs(init, update)
    return checked(tx, shapes=not isinstance(inner, TakesActive))


class _Result(NamedTuple):
    updates: Any
    state: Any


class _Call(NamedTuple):
    """What the inner transformation is called with."""

    inner: optax.GradientTransformationExtraArgs
    updates: Any
    state: Any
    params: Any
    extra: dict[str, Any]

    @property
    def weights(self) -> Any:
        """What is shaped like the updates are to be: the parameters, if given."""
        return self.updates if self.params is None else self.params

    def run(self) -> _Result:
        """A step of `inner`, with dtypes as they were."""
        updates, state = self.inner.update(
            self.updates, self.state, self.params, **self.extra
        )
        return jax.tree.map(
            cast, _Result(updates, state), _Result(self.weights, self.state)
        )

    def narrow(self, parts: list[Part]) -> tuple["_Call", Owners]:
        """The call with what moves alone, and what moves of the state."""
        state, owners = narrow_state(self.inner.init, self.weights, self.state, parts)
        params = None if self.params is None else narrow(self.params, parts)
        call = self._replace(
            updates=narrow(self.updates, parts), state=state, params=params
        )
        return call, owners


def _step(call: _Call, parts: list[Part]) -> _Result:
    """A step of the parts that move."""
    small, owners = call.narrow(parts)
    moved = small.run()  # 3. and 4. for i ∈ Sᵏ
    # 2. for i ∉ Sᵏ: Mᵢᵏ = Mᵢᵏ⁻¹, Xᵢᵏ⁺¹ = Xᵢᵏ
    zeros = jax.tree.map(jnp.zeros_like, call.weights)
    return _Result(
        widen(zeros, moved.updates, parts),
        widen_state(call.state, moved.state, owners),
    )


def _sampled_step(
    call: _Call, placed: Placement, drawn: Bool[Array, " b"], always: Active
) -> _Result:
    """A step of the set drawn, with a conditional for each layer that may not move."""
    updates, state = _step(call, placed.parts(always))
    _, shared = call.narrow(placed.parts((False,) * len(always)))
    for i in range(len(always)):
        if always[i]:
            continue
        parts = placed.parts([j == i for j in range(len(always))])
        small, owners = call.narrow(parts)
        frozen = _Result(jax.tree.map(jnp.zeros_like, small.weights), small.state)
        moved = jax.lax.cond(drawn[i], small.run, lambda frozen=frozen: frozen)
        updates = widen(updates, moved.updates, parts)
        own = {path: part for path, part in owners.items() if path not in shared}
        state = widen_state(state, moved.state, own)
    return _Result(updates, state)
