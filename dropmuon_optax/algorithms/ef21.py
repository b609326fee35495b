"""EF21: compressed messages with error feedback, around any direction.

    EF21-Muon (arXiv:2510.00643).  Input: X⁰ = W⁰, M_j⁻¹ = G_j⁻¹ = G⁻¹ = 0, momentum β,
    radii tᵏ, compressors 𝒞_j of the workers and 𝒞 of the server
      for k = 0, 1, 2, …
        worker j = 1, …, n:
          1. M_jᵏ = (1 − β) M_jᵏ⁻¹ + β ∇f_j(Wᵏ; ξ_jᵏ)
          2. R_jᵏ = 𝒞_j(M_jᵏ − G_jᵏ⁻¹);  G_jᵏ = G_jᵏ⁻¹ + R_jᵏ;  send R_jᵏ
        server:
          3. Gᵏ   = Gᵏ⁻¹ + (1/n) Σ_j R_jᵏ
          4. Xᵏ⁺¹ = LMO over B(Xᵏ, tᵏ) of Gᵏ
          5. Sᵏ   = 𝒞(Xᵏ⁺¹ − Wᵏ);  broadcast Sᵏ
        all:
          6. Wᵏ⁺¹ = Wᵏ + Sᵏ

The paper's box goes step, broadcast, gradient, message; it is rotated here to begin at
the gradient, as Optax calls it. Lines hold for every layer, whose index is left out.
The paper's β weighs the new gradient and is 1 − `momentum`; the loop's parameters are
W, its updates S, and line 6 is `optax.apply_updates`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dropmuon_optax import checks, linalg
from dropmuon_optax.compressors import Compressor
from dropmuon_optax.layers import LayersFn
from dropmuon_optax.layers.parts import TakesActive, check_active, narrow, place, widen
from dropmuon_optax.layers.rules import Rules, check_rules
from dropmuon_optax.layers.trees import check_gradients, check_mask, shapes_of_state
from dropmuon_optax.samplings.draws import threefry_key
from dropmuon_optax.wire import Axis, check_replicated, inward, messages, relays, stacks
from dropmuon_optax.wire import server as at_server
from dropmuon_optax.wire.first import first_state, may_remember
from dropmuon_optax.wire.ownership import WORK_SHARE, Ownership, own
from dropmuon_optax.wire.server import EF21State, Server
from dropmuon_optax.wire.stacks import Selection, Stacks, collect, scatter, select


def ef21(
    inner: optax.GradientTransformation,
    layers: LayersFn,
    worker_compressor: Compressor | Rules,
    server_compressor: Compressor | Rules | None = None,
    momentum: optax.ScalarOrSchedule = 0.9,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """EF21 around any direction: EF21-Muon's box with `inner` in its LMO's place.

    Args:
      inner: the step from G to Xᵏ⁺¹ − Xᵏ: oracle, weight decay and learning rate. Its
        updates and parameters are dictionaries of stacks of matrices (t, p, q), so it
        must treat matrices or entries one by one; its `update` is given `oracle`, from
        such updates to −LMO of each, and `decays`, whether the weights of each stack
        do. Nothing may follow it in a chain.
      layers: a function from the parameters to a tree of `Layer`s.
      worker_compressor: as `ef21_muon` documents it.
      server_compressor: likewise.
      momentum: likewise.
      **options: likewise, by name; `num_workers` and `key` must be given.

    Returns:
      A transformation whose updates are S.

    Raises:
      ValueError: as `ef21_muon` does; with `active`, if `inner`'s state has matrices.

    Examples:
      >>> from dropmuon_optax.compressors import Natural
      >>> from dropmuon_optax.layers import layers_by_path
      >>> layers, key = layers_by_path(None), jax.random.key(0)
      >>> tx = ef21(
      ...     optax.sgd(1.0), layers, Natural(), momentum=0.0, num_workers=1, key=key
      ... )
      >>> params = {"kernel": jnp.full((8, 8), 3.0)}
      >>> tx.update(params, tx.init(params), params)[0]["kernel"][0, :2]
      Array([-4., -4.], dtype=float32)

    References:
      EF21-Muon, arXiv:2510.00643, Algorithms 2 and 3; EF21, arXiv:2106.05203.
    """
    compressors = (worker_compressor, server_compressor)
    step = optax.with_extra_args_support(inner)
    box = _Box(step, layers, compressors, momentum, **options)
    init = functools.partial(_init, box)
    return TakesActive(init, functools.partial(_update, box, shapes_of_state(init)))


@dataclasses.dataclass(frozen=True)
class _Box:
    """What the box is run with; `ef21_muon` documents it."""

    inner: Any
    layers: LayersFn
    compressors: tuple[Any, Any]
    momentum: optax.ScalarOrSchedule
    num_workers: int
    key: Any
    axis_name: str = "data"
    topology: str = "owner"
    local_axis_name: str | None = None
    initial: str = "zeros"
    momentum_dtype: Any = None
    num_layers: int | None = None
    weight_decay_mask: Any = None
    work_share: float = WORK_SHARE
    relays: bool = False

    def __post_init__(self) -> None:
        checks.is_momentum("momentum", self.momentum)
        checks.positive_int("num_layers", self.num_layers, optional=True)
        checks.in_range("work_share", self.work_share, 0.0, 1.0)
        checks.is_flag("relays", self.relays)
        check_mask(self.weight_decay_mask)
        checks.is_function("layers", self.layers)
        threefry_key(self.key)
        checks.one_of("topology", self.topology, ("owner", "gather"))
        checks.one_of("initial", self.initial, ("zeros", "gradient"))
        checks.float_dtype("momentum_dtype", self.momentum_dtype)
        check_rules("worker_compressor", self.compressors[0])
        check_rules("server_compressor", self.compressors[1])
        if self.axis.size > 1 and self.shared and self.compressors[1] is not None:
            raise ValueError(
                "`server_compressor` must be None where every worker is the server "
                f"(topology='gather'), got {self.compressors[1]!r}"
            )

    @property
    def axis(self) -> Axis:
        return Axis(self.axis_name, self.num_workers, self.local_axis_name)

    @property
    def shared(self) -> bool:
        """Whether every worker is the server."""
        return self.topology == "gather" or self.num_workers == 1

    @property
    def keeps_momentum(self) -> bool:
        return not (checks.is_concrete(self.momentum) and self.momentum == 0)

    def ownership(self, params: Any) -> Ownership:
        owners = 1 if self.shared else self.axis.size
        how = *self.compressors, self.weight_decay_mask, self.work_share, self.relays
        return own(self.layers, params, owners, self.axis.size, *how)

    def select(self, params: Any, active: Any) -> Selection:
        """What moves, of all that there is."""
        if active is None:
            return select(self.ownership(params))
        placed = place(self.layers, params, self.num_layers)
        active = check_active(active, placed.num_layers, empty=True)
        return select(self.ownership(params), placed.parts(active))


def _init(box: _Box, params: Any) -> EF21State:
    selection = box.select(params, None)  # refuses what is no parameter
    check_replicated(params)
    return first_state(
        params,
        selection,
        num_workers=box.axis.size,
        inner=box.inner,
        key=jax.random.key_data(threefry_key(box.key)),
        shared=box.shared,
        keeps_momentum=box.keeps_momentum,
        keeps_x=box.compressors[1] is not None,
        remembers=any(may_remember(rules) for rules in box.compressors),
        dtype=box.momentum_dtype,
    )


class _Turn(NamedTuple):
    """One step: what moves, who is asked, and this step's key."""

    box: _Box
    moving: Selection
    worker: Any  # j, this worker
    owner: Any  # whose matrices this worker steps, as the server
    key: Any
    count: Any  # k


def _update(
    box: _Box,
    first: Any,
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    active: Any = None,
    **extra: Any,
) -> tuple[Any, EF21State]:
    box.axis.check()
    if params is None:
        raise ValueError("`params` must be given to `update`: the weights W, got None")
    check_gradients(updates, params)
    at_server.check_first(state, first(params), box.momentum, box.compressors[1])
    box.axis.check_own(updates, state.G_j, active)
    state, outward = inward(state, state.G_j, updates)
    moving = box.select(params, active)
    at_server.check_server(state, first(params), moving, box.inner)
    key = jax.random.fold_in(threefry_key(state.key), state.count)
    worker = box.axis.index()
    turn = _Turn(box, moving, worker, 0 if box.shared else worker, key, state.count)
    S = jax.tree.map(jnp.zeros_like, params)
    if moving.tables:
        state, received = _worker_lines(turn, state, updates)
        moved, server = _server_lines(turn, state.server, received, params, extra)
        S = widen(S, moved, turn.moving.parts)
        state = state._replace(server=server)
    return S, outward(state._replace(count=optax.safe_increment(state.count)))


def _worker_lines(turn: _Turn, state: EF21State, updates: Any) -> tuple[EF21State, Any]:
    """Lines 1 and 2: a worker's next state, and what it receives from all."""
    box, moving, parts = turn.box, turn.moving, turn.moving.parts

    # 1. M_j = (1 − β) M_j + β ∇f_j(W; ξ_j)
    g = narrow(box.axis.mean_within(updates), parts)
    M_j = _average(box, state, g, parts)

    # 2. R_j = 𝒞_j(M_j − G_j);  G_j = G_j + R_j;  send R_j
    G_j = narrow(state.G_j, parts)
    delta = jax.tree.map(lambda m, e: m.astype(e.dtype) - e, M_j, G_j)
    key, rows = jax.random.fold_in(turn.key, turn.worker), collect(moving, delta)
    coded, memory = messages.write(moving, moving.workers, rows, state.memory, key)
    R_j = messages.read(moving, moving.workers, coded)
    G_j = jax.tree.map(jnp.add, G_j, scatter(moving, R_j, G_j))
    message = messages.letters(moving, moving.workers).to_owners(coded)
    received = box.axis.gather(message[0]) if box.shared else box.axis.exchange(message)

    momentum = widen(state.momentum, M_j, parts) if box.keeps_momentum else None
    G_j = widen(state.G_j, G_j, parts)
    return state._replace(momentum=momentum, G_j=G_j, memory=memory), received


def _server_lines(
    turn: _Turn, server: Server, received: Any, params: Any, extra: dict[str, Any]
) -> tuple[Any, Server]:
    """Lines 3 to 5: S of what moves, and the server's next state."""
    moving, owner = turn.moving, turn.owner

    # 3. G = G + (1/n) Σ_j R_j
    G, X = at_server.read_server(server, moving, owner)
    mean = relays.mean_at_owners(turn.box.axis, moving, received, owner)
    G = jax.tree.map(jnp.add, G, mean)

    # 4. X = LMO over B(X, t) of G
    W = at_server.own_rows(moving, params, owner)
    extra["oracle"] = functools.partial(stacks.oracle, moving, owner, turn.count)
    extra["decays"] = moving.decays
    step, inner = turn.box.inner.update(G, server.inner, W if X is None else X, **extra)

    # 5. S = 𝒞(X − W);  broadcast S
    if X is not None:
        X = jax.tree.map(jnp.add, X, step)
        step = jax.tree.map(jnp.subtract, X, W)
    S, memory = _broadcast(turn, step, server.memory)
    server = at_server.write_server(server, moving, owner, G, X)
    like = narrow(params, turn.moving.parts)
    return scatter(moving, S, like), server._replace(inner=inner, memory=memory)


def _average(box: _Box, state: EF21State, g: Any, parts: Any) -> Any:
    """Line 1 of what moves: M_j in its own dtype, averaged in float32 or wider."""
    if not box.keeps_momentum:
        return g
    old_weight = box.momentum(state.count) if callable(box.momentum) else box.momentum
    if box.initial == "gradient":
        old_weight = jnp.where(state.count == 0, 0.0, old_weight)

    def lerp(m: Any, new: Any) -> Any:
        a = jnp.asarray(old_weight, linalg.wide_dtype(m, new))
        wide = a * m.astype(a.dtype) + (1 - a) * new.astype(a.dtype)
        return wide.astype(m.dtype)

    return jax.tree.map(lerp, narrow(state.momentum, parts), g)


def _broadcast(turn: _Turn, step: Any, memory: Any) -> tuple[Stacks, Any]:
    """Line 5: what arrives of the owners' steps, (k, p, q), and 𝒞's memory."""
    box, moving, owner = turn.box, turn.moving, turn.owner
    key = jax.random.fold_in(turn.key, box.axis.size)
    coded, memory = messages.write(moving, moving.servers, step, memory, key, owner)
    if not box.shared:
        coded = relays.from_owners(box.axis, moving, coded, owner)
    return messages.read(moving, moving.servers, coded), memory
