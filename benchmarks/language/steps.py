"""From an optimizer to a train step of a language model.

The learning rate is an argument of the step: one program serves every rate, schedule
and seed. Drop-Muon has one for each set of layers that moves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

import dropmuon_optax as dm
from benchmarks.language.plan import Plan, Sets, SetsAt
from benchmarks.models import nanogpt

AXIS = "data"  # of the devices, over which a batch is spread
# Embedding and head move by Adam at this share of Muon's learning rate, in both Muons.
ADAM_SHARE = 0.1
TOP_SHARE = 0.1  # of the entries of a message that EF21-Muon sends
OUTSIDE_SHARE = 0.25  # of a spectral step's root mean square that a sign step has
KEEP = 0.75  # how probable a block is there, or moves
GROWTH = "0.8:half"  # of the FLOPs for the first half of the blocks, then all

Rate = Float[Array, ""]
Tokens = Int[Array, "A B T+1"]  # A parts of a batch, whose gradients are accumulated


class Model(NamedTuple):
    """A network, and the norms of its layers."""

    config: nanogpt.Config
    apply: Callable[..., Array]  # (params, tokens[, active, present, around]) -> logits
    scanned: bool
    mesh: jax.sharding.Mesh  # along AXIS
    radius: float = nanogpt.HIDDEN_RADIUS
    sign_radius: float = nanogpt.SIGN_RADIUS
    adam_share: float = ADAM_SHARE
    growth: str = GROWTH  # as `growth.read` reads it
    keep: float = KEEP
    outside_share: float = OUTSIDE_SHARE
    estimated: Any = None  # `layers` with measured radii, see `radii.py`

    @property
    def layers(self) -> Any:
        """Scion's norms."""
        return nanogpt.layers(
            self.config,
            scanned=self.scanned,
            radius=self.radius,
            sign_radius=self.sign_radius,
        )

    @property
    def sign_layers(self) -> Any:
        """Sign norms for all, in blocks with steps `outside_share` of Scion's.

        A spectral step √(n_out/n_in)·radius·UVᵀ of a matrix whose shorter side is the
        width C has entries of root mean square radius·√C/n_in.
        """
        blocks = self.outside_share * self.radius * self.config.width**0.5
        return nanogpt.layers(
            self.config,
            scanned=self.scanned,
            radius=blocks,
            sign_radius=self.sign_radius,
            norm=dm.norms.scion_sign(),
        )


class Method(NamedTuple):
    """An optimizer as a train step."""

    init: Callable[[Any, int], Any]  # (params, seed) -> optimizer's state, on the mesh
    # jitted (params, state, rate, tokens[, static sets]) -> (params, state, loss)
    step: Any
    # (params, state) -> weights to evaluate
    evaluated: Callable[[Any, Any], Any] = lambda params, state: params
    sets_at: SetsAt = lambda plan, step: None
    # (params, plan) -> first weights
    start: Callable[[Any, Plan], Any] = lambda params, plan: params
    radii: dict[str, Any] | None = None  # how its radii were measured, for the record


def build_loss(model: Model) -> Callable[..., Float[Array, ""]]:
    """Mean cross-entropy of the next token in nats, (params, windows, sets=None)."""

    def loss(params: Any, windows: Int[Array, "B T+1"], sets: Sets | None = None):
        static = () if sets is None else (sets.active, sets.present, sets.around)
        logits = model.apply(params, windows[:, :-1], *static)  # (B, T, V)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, windows[:, 1:]
        ).mean()

    return loss


def accumulate(gradient: Callable[..., Any], params: Any, tokens: Tokens) -> Any:
    """Means over the parts of a batch of `gradient(params, part)`: loss, gradient."""
    if tokens.shape[0] == 1:
        return gradient(params, tokens[0])
    found = jax.eval_shape(gradient, params, tokens[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)

    def add(total: Any, part: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    total, _ = jax.lax.scan(add, zeros, tokens)
    return jax.tree.map(lambda x: x / tokens.shape[0], total)


def plain(build: Callable[[Model, Any], Any], model: Model) -> Method:
    """The method of an Optax transformation.

    Args:
        build: (model, learning rate: a schedule) -> transformation.
        model: What to train.
    """
    loss_fn = build_loss(model)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, rate: Rate, tokens: Tokens):
        loss, grads = accumulate(jax.value_and_grad(loss_fn), params, tokens)
        tx = build(model, lambda count: rate)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return Method(
        init=lambda params, seed: replicate(
            build(model, lambda count: 0.0).init(params), model.mesh
        ),
        step=step,
    )


def compressed(model: Model) -> Method:
    """EF21-Muon: each device is a worker, which sends a tenth of its message's entries.

    Of the natural compressor's 9 bits each; the server's step goes out dense.
    """
    num_workers = model.mesh.size
    compressor = dm.compressors.Composed(
        dm.compressors.TopK(TOP_SHARE), dm.compressors.Natural()
    )

    def transformation(rate: Any, key: jax.Array):
        return dm.ef21_muon(
            rate,
            model.layers,
            compressor,
            axis_name=AXIS,
            num_workers=num_workers,
            key=key,
        )

    def init(params: Any, seed: int) -> Any:
        key = jax.random.key(seed)
        state = transformation(lambda count: 0.0, key).init(params)
        return jax.tree.map(
            lambda x, layout: jax.device_put(np.array(x), layout),
            state,
            dm.worker_shardings(state, AXIS, model.mesh),
        )

    any_key = jax.random.key(0)  # drawn here: not inside the trace of a step

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, rate: Rate, tokens: Tokens):
        def of_worker(params: Any, state: Any, windows: Array):  # (B/n, A, T+1)
            parts = windows.swapaxes(0, 1)
            gradient = jax.value_and_grad(build_loss(model))
            loss, grads = accumulate(gradient, dm.local_params(params, AXIS), parts)
            tx = transformation(lambda count: rate, any_key)  # the state has the run's
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, jax.lax.pmean(loss, AXIS)

        run = dm.worker_map(of_worker, AXIS, state, model.mesh)
        return run(params, state, tokens.swapaxes(0, 1))

    return Method(
        init=init,
        step=step,
        evaluated=jax.jit(
            lambda params, state: dm.ef21_muon_eval_params(state, params)
        ),
    )


def replicate(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """A copy of a tree of arrays, whole on every device."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(np.array(x), whole), tree)
