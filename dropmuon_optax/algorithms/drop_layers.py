"""A random set of layers around any transformation: the others are frozen.

`drop_muon` puts it around Gluon's step. The set of a step is either static, so that
what doesn't move is not in the program, or drawn inside, behind conditionals.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from dropmuon_optax import checks
from dropmuon_optax.layers import LayersFn
from dropmuon_optax.layers.leaves import join
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
from dropmuon_optax.layers.trees import checked
from dropmuon_optax.lmo import tree_lmo
from dropmuon_optax.samplings import Sampling
from dropmuon_optax.samplings.draws import threefry_key


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
    outside: LayersFn | None = None,
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
      outside: norms and radii of a step that the layers outside Sᵏ take instead of
        standing still: their updates become −LMO of themselves, as by `scale_by_lmo`.

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
    _check(inner, layers, sampling, num_layers, outside)
    inner = optax.with_extra_args_support(inner)
    words = jax.random.key_data(threefry_key(key))

    def init(params: Any) -> DropState:
        if jax.tree.leaves(params):  # `optax.tree_map_params` comes without
            sampling.check(place(layers, params, num_layers).num_layers)
        own = jnp.array(words, copy=True)  # whoever donates the state keeps the key
        return DropState(jnp.zeros((), jnp.int32), own, inner.init(params))

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
        other = None if outside is None else partial(tree_lmo, outside)
        call = _Call(inner, updates, state.inner, params, extra, other, state.count)
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


def _check(
    inner: Any, layers: Any, sampling: Any, num_layers: Any, outside: Any
) -> None:
    """Refuses arguments of `drop_layers`."""
    checks.is_function("layers", layers)
    checks.positive_int("num_layers", num_layers, optional=True)
    if not isinstance(sampling, Sampling):
        raise ValueError(f"`sampling` must be a sampling, got {sampling!r}")
    if outside is None:
        return
    checks.is_function("outside", outside)
    if isinstance(inner, TakesActive):
        raise ValueError(
            "`outside` must be None for an `inner` that takes `active` itself, "
            f"got {outside!r}"
        )


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
    outside: Callable[[Any, Any], Any] | None  # (updates, k) -> −LMO of each
    count: Any

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

    def rest(self) -> Any:
        """The updates of layers outside Sᵏ."""
        if self.outside is None:
            return jax.tree.map(jnp.zeros_like, self.weights)
        return jax.tree.map(cast, self.outside(self.updates, self.count), self.weights)

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
    # 2. for i ∉ Sᵏ: Mᵢᵏ = Mᵢᵏ⁻¹, Xᵢᵏ⁺¹ = Xᵢᵏ, unless they take another step
    updates = jax.tree.map(jnp.zeros_like, call.weights)
    if call.outside is not None:
        others = [part.complement for part in parts]
        cut = call._replace(
            updates=narrow(call.updates, others), params=narrow(call.weights, others)
        )
        updates = widen(updates, cut.rest(), others)
    return _Result(
        widen(updates, moved.updates, parts),
        widen_state(call.state, moved.state, owners),
    )


def _sampled_step(
    call: _Call, placed: Placement, drawn: Bool[Array, " b"], always: Active
) -> _Result:
    """A step of the set drawn, with a conditional for each layer that may not move."""
    updates, state = _step(call._replace(outside=None), placed.parts(always))
    _, shared = call.narrow(placed.parts((False,) * len(always)))
    for i in range(len(always)):
        if always[i]:
            continue
        parts = placed.parts([j == i for j in range(len(always))])
        small, owners = call.narrow(parts)
        stays = lambda small=small: _Result(small.rest(), small.state)  # noqa: E731
        moved = jax.lax.cond(drawn[i], small.run, stays)
        updates = widen(updates, moved.updates, parts)
        own = {path: part for path, part in owners.items() if path not in shared}
        state = widen_state(state, moved.state, own)
    return _Result(updates, state)


def zero_outputs(params: Any, layers: LayersFn, present: Any, outputs: str) -> Any:
    """The parameters with the outputs of layers that are absent at first set to zero.

    A block whose branch ends in a matrix of zeros is the identity, h + 0: a layer that
    is absent (see `samplings.Grown`) enters later without a jump of the loss, and moves
    from there, for the gradient of that matrix is not zero.

    Args:
      params: the parameters.
      layers: a function from the parameters to a tree of `Layer`s with indices.
      present: b bools, the layers that are there from the beginning, such as
        `present_layers(sampling, b, key, 0)`.
      outputs: a regular expression that is found in the paths of what each residual
        branch ends in, its bias too if it has one that isn't zero. A block of
        attention and a perceptron has two such matrices.

    Returns:
      The same tree, zeros in the leaves (of stacked ones, in the rows) that `outputs`
      names of layers that aren't present.

    Raises:
      ValueError: if `present` isn't a tuple of b bools, a leaf's layer has no index, or
        there is a layer, neither present nor with a leaf that `outputs` names.

    Examples:
      >>> from dropmuon_optax.layers.by_path import layers_by_path
      >>> block = {"up": jnp.ones((2, 1, 1)), "down": jnp.ones((2, 1, 1))}
      >>> params = {"embed": jnp.ones(1), "blocks": block}
      >>> layers = layers_by_path(order=["embed", "blocks"], stacked="blocks")
      >>> found = zero_outputs(params, layers, (True, True, False), "down")
      >>> print(found["blocks"]["up"].ravel(), found["blocks"]["down"].ravel())
      [1. 1.] [1. 0.]
    """
    placed, pattern = place(layers, params), re.compile(outputs)
    present = check_active(present, placed.num_layers)
    absent, found = [not here for here in present], []
    missing = {i for i, out in enumerate(absent) if out}
    leaves, parts = join(layers, params), placed.parts(absent)
    for leaf, part, indices in zip(leaves, parts, placed.indices, strict=True):
        x = leaf.value
        if part.any and pattern.search(leaf.path):
            missing -= set(indices)
            x = jnp.where(part.mask(x.ndim), jnp.zeros_like(x), x)
        found.append(x)
    if missing:
        raise ValueError(
            "`outputs` must be found in the path of a leaf of every layer that isn't "
            f"present, got {outputs!r}, found in none of layers {sorted(missing)}"
        )
    return jax.tree.unflatten(jax.tree.structure(params), found)
