"""The methods that `ef21_workers` compares, each as a first state and a train step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

import dropmuon_optax as dm

AXIS = "data"
WARM_DOWN = 0.3  # share of the steps over which the learning rate falls to 0
SPARSE = dm.compressors.Composed(dm.compressors.TopK(0.1), dm.compressors.Natural())

# Compressors of workers and server; None: all-reduce of the gradients, and Gluon.
METHODS: dict[str, tuple[Any, Any] | None] = {
    "dense": None,
    "natural": (dm.compressors.Natural(), dm.compressors.Natural()),
    "top10_natural": (SPARSE, dm.compressors.Natural()),
    "top10_both": (SPARSE, SPARSE),
}


class Plan(NamedTuple):
    """All that a run's numbers depend on, beside the code."""

    method: str
    preset: str
    dataset: str
    num_steps: int
    every: int  # steps from one evaluation, and checkpoint, to the next
    batch_size: int  # windows of a step, of each worker
    length: int  # tokens of context
    learning_rate: float
    momentum: float
    seed: int
    num_workers: int


def first_and_step(
    plan: Plan, layers: Any, loss_fn: Any, params: Any, mesh: Any
) -> Any:
    """The first state, the step, and (state, params) -> X.

    A step is (params, state, windows) -> (params, state, loss), to be jitted.
    """
    compressors = METHODS[plan.method]
    if compressors is None:
        return dense(plan, layers, loss_fn, params, mesh)
    return compressed(ef21_muon(plan, layers, *compressors), loss_fn, params, mesh)


def ef21_muon(plan: Plan, layers: Any, of_workers: Any, of_server: Any) -> Any:
    return dm.ef21_muon(
        rates(plan),
        layers,
        of_workers,
        of_server,
        momentum=plan.momentum,
        axis_name=AXIS,
        num_workers=plan.num_workers,
        key=jax.random.key(plan.seed),
    )


def compressed(tx: Any, loss_fn: Any, params: Any, mesh: Any) -> Any:
    """EF21-Muon: first state, step, and (state, params) -> X."""
    shapes = jax.eval_shape(tx.init, params)
    places = dm.worker_shardings(shapes, AXIS, mesh)
    state = jax.jit(tx.init, out_shardings=places)(params)

    def step(params: Any, state: Any, windows: Int[jax.Array, "B T+1"]):
        gradient = jax.value_and_grad(loss_fn)
        loss, grads = gradient(dm.local_params(params, AXIS), windows)  # no mean
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, jax.lax.pmean(loss, AXIS)

    return state, dm.worker_map(step, AXIS, shapes, mesh), dm.ef21_muon_eval_params


def dense(plan: Plan, layers: Any, loss_fn: Any, params: Any, mesh: Any) -> Any:
    """Gluon on the mean gradient, as data-parallel training does; X = W."""
    tx = dm.gluon(rates(plan), layers, plan.momentum)
    state = jax.jit(tx.init, out_shardings=NamedSharding(mesh, P()))(params)

    def step(params: Any, state: Any, windows: Int[jax.Array, "B T+1"]):
        gradient = jax.value_and_grad(loss_fn)
        found = gradient(dm.local_params(params, AXIS), windows)
        loss, grads = jax.lax.pmean(found, AXIS)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    specs = (P(), P(), P(AXIS))
    step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P())
    return state, step, lambda state, params: params


def rates(plan: Plan) -> optax.Schedule:
    """Constant, then linearly to 0 after the last step."""
    falling = max(1.0, WARM_DOWN * plan.num_steps)

    def rate(count: Any) -> Any:
        left = (plan.num_steps - count) / jnp.float32(falling)
        return plan.learning_rate * jnp.minimum(1.0, left)

    return rate
