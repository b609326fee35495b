"""A training step over workers: on the devices of a mesh, or simulated on one."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dropmuon_optax.counters.traffic import SIMULATED
from dropmuon_optax.layers.leaves import path_of

Step = Callable[..., tuple[Any, ...]]


def worker_map(
    step: Step,
    axis_name: str | Sequence[str],
    state: Any,
    mesh: Mesh | AbstractMesh | None = None,
) -> Step:
    """Runs a step on every worker: under `jax.shard_map`, or `jax.vmap` as simulation.

    `step(params, state, *batch)` is written for one worker: its gradients are its own
    (see `local_params`), its transformation talks to the others, and whatever else it
    returns must be the same on all workers, `jax.lax.pmean(loss, axis_name)` say.

    Args:
      step: a function of (params, state, *batch) that returns (params, state, *rest).
      axis_name: the axis of the workers; or (nodes, devices): each worker is a node, of
        several devices, and the transformation's `local_axis_name` is the second.
      state: the optimizer's state, or its shapes: which leaves are each worker's own is
        read off its structure.
      mesh: the devices, with an axis of that name; None simulates the workers on one
        device, with the same numbers; an abstract mesh is for tracing.

    Returns:
      A function of the same arguments, to be jitted. Parameters are replicated; the
      batch's leading axis is split evenly over the workers.

    Raises:
      ValueError: if the mesh lacks an axis, has one that holds no workers, or another
        number of workers than the state; when called, if a batch can't be split evenly
        or parameters are sharded.

    Examples:
      >>> def step(params, state, batch):
      ...     return params + jax.lax.pmean(batch.sum(), "data"), state
      >>> worker_map(step, "data", state=())(jnp.zeros(()), (), jnp.arange(4.0))[0]
      Traceback (most recent call last):
      ...
      ValueError: `state` must hold the state of a transformation over workers, got ()
    """
    names = [axis_name] if isinstance(axis_name, str) else list(axis_name)
    roles = per_worker(state)
    num_workers = _count_workers(state, roles)
    if mesh is None:
        if len(names) > 1:
            raise ValueError(
                "`mesh` must be given where each worker is several devices, got None"
            )
        return _simulated(step, names[0], roles, num_workers)
    _check_mesh(mesh, names, num_workers)
    specs = jax.tree.map(lambda own: P(names[0]) if own else P(), roles)

    def mapped(params: Any, state: Any, *batch: Any) -> tuple[Any, ...]:
        _check_batch(batch, math.prod(mesh.shape[name] for name in names))
        check_replicated(params)
        in_specs = (P(), specs, *[P(tuple(names))] * len(batch))

        body = jax.shard_map(
            _with_rest(step), mesh=mesh, in_specs=in_specs, out_specs=(P(), specs, P())
        )
        params, state, rest = body(*_placed((params, state, *batch), in_specs, mesh))
        return params, state, *rest

    return mapped


def worker_shardings(state: Any, axis_name: str | Sequence[str], mesh: Mesh) -> Any:
    """Where each leaf of the optimizer's state lies on a mesh, for `jax.device_put`.

    Args:
      state: the optimizer's state, or its shapes.
      axis_name: as in `worker_map`.
      mesh: the devices.

    Returns:
      A tree of `NamedSharding`s: what is a worker's own lies with it, the rest is
      replicated. Good for `jax.jit(tx.init, out_shardings=...)` and checkpointers.

    Examples:
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> worker_shardings({"count": jnp.zeros(())}, "data", mesh)["count"].spec
      P()
    """
    name = axis_name if isinstance(axis_name, str) else axis_name[0]
    return jax.tree.map(
        lambda own: NamedSharding(mesh, P(name) if own else P()), per_worker(state)
    )


def per_worker(state: Any, own: bool = False) -> Any:
    """A tree of bools: whether a leaf is each worker's own, with a leading axis n.

    States say so by a class attribute `per_worker` with the names of their fields.
    """

    def visit(node: Any) -> Any:
        fields = getattr(type(node), "per_worker", None)
        if fields is None:
            return own
        values = zip(node._fields, node, strict=True)
        return type(node)(
            *[per_worker(value, name in fields) for name, value in values]
        )

    return jax.tree.map(visit, state, is_leaf=_is_marked)


def inward(state: Any, estimate: Any, like: Any) -> tuple[Any, Callable[[Any], Any]]:
    """One worker's view of the state: without the leading axis of what is its own.

    `jax.vmap` has taken it away already; under `jax.shard_map`, and where there is no
    axis, it has length 1.

    Args:
      state: as `update` got it.
      estimate: the part of it that is shaped as the parameters and each worker's own.
      like: the gradients.

    Returns:
      The view, and its inverse for the next state.

    Raises:
      ValueError: if the state is of other parameters, or of several workers at once.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(estimate)
    leaves, other = jax.tree.flatten(like)
    if structure != other:
        raise ValueError(
            f"gradients must have the structure of the state, {structure}, got {other}"
        )
    stripped = True
    for (keys, mine), leaf in zip(flat, leaves, strict=True):
        shape, expected = jnp.shape(mine), jnp.shape(leaf)
        stripped = shape == expected
        if not stripped and shape != (1, *expected):
            raise ValueError(
                f"the state of {path_of(keys)!r} must be one worker's, of shape "
                f"{expected} or {(1, *expected)} (run the step through `worker_map`), "
                f"got {shape}"
            )
    if stripped:
        return state, lambda new: new
    view = _map_own(lambda x: x[0], state)
    return view, lambda new: _map_own(lambda x: x[None], new)


def _map_own(fun: Callable[[Any], Any], state: Any) -> Any:
    return jax.tree.map(lambda own, x: fun(x) if own else x, per_worker(state), state)


def _is_marked(node: Any) -> bool:
    return hasattr(type(node), "per_worker")


def _count_workers(state: Any, roles: Any) -> int:
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    owns = jax.tree.leaves(roles)
    found = {
        jnp.shape(leaf)[0]: path_of(keys)
        for (keys, leaf), own in zip(flat, owns, strict=True)
        if own
    }
    if not found:
        raise ValueError(
            "`state` must hold the state of a transformation over workers, "
            f"got {state!r}"
        )
    if len(found) > 1:
        raise ValueError(
            f"`state` must be of one number of workers, got leading axes {found}"
        )
    return next(iter(found))


def _simulated(step: Step, axis_name: str, roles: Any, num_workers: int) -> Step:
    axes = jax.tree.map(lambda own: 0 if own else None, roles)

    def mapped(params: Any, state: Any, *batch: Any) -> tuple[Any, ...]:
        _check_batch(batch, num_workers)
        n = num_workers
        split = jax.tree.map(
            lambda x: jnp.reshape(x, (n, len(x) // n, *jnp.shape(x)[1:])), batch
        )
        run = jax.vmap(
            _with_rest(step),
            in_axes=(None, axes, *[0] * len(batch)),
            out_axes=(None, axes, None),
            axis_name=axis_name,
            axis_size=num_workers,
        )
        if num_workers == 1:
            params, state, rest = run(params, state, *split)
        else:  # the counters of bytes know a simulation by its scope
            with jax.named_scope(f"{SIMULATED}{num_workers}"):
                params, state, rest = run(params, state, *split)
        return params, state, *rest

    return mapped


def _with_rest(step: Step) -> Step:
    """The step with all that it returns besides parameters and state in one tuple."""

    def run(*arguments: Any) -> tuple[Any, Any, tuple[Any, ...]]:
        params, state, *rest = step(*arguments)
        return params, state, tuple(rest)

    return run


def _check_mesh(mesh: Mesh | AbstractMesh, names: list[str], num_workers: int) -> None:
    for name in names:
        if name not in mesh.shape:
            raise ValueError(f"`mesh` must have an axis {name!r}, got {mesh}")
    for name, size in mesh.shape.items():
        if name not in names and size > 1:
            raise ValueError(
                "`mesh` must have no axis but those of the workers, over which the "
                f"parameters are replicated, got {name!r} of size {size}"
            )
    if mesh.shape[names[0]] != num_workers:
        raise ValueError(
            f"`state` must be of {mesh.shape[names[0]]} workers, the size of the axis "
            f"{names[0]!r}, got {num_workers}"
        )


def _check_batch(batch: Any, parts: int) -> None:
    flat, _ = jax.tree_util.tree_flatten_with_path(batch)
    for keys, leaf in flat:
        shape = jnp.shape(leaf)
        if not shape or shape[0] % parts:
            raise ValueError(
                f"a batch must have a leading axis that {parts} workers can share "
                f"evenly, got shape {shape} for {path_of(keys)!r}"
            )


def check_replicated(params: Any) -> None:
    """Refuses parameters that are sharded.

    Raises:
      ValueError: naming the leaf.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    for keys, leaf in flat:
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            replicated = leaf.sharding.is_fully_replicated
        else:
            sharding = jax.typeof(leaf).sharding
            replicated = all(axis is None for axis in sharding.spec)
        if not replicated:
            raise ValueError(
                f"`params` must be replicated over the workers, got {path_of(keys)!r} "
                f"sharded as {jax.typeof(leaf)}"
            )


def _placed(arguments: Any, specs: Any, mesh: Mesh | AbstractMesh) -> Any:
    """The arguments as a mesh of Explicit axes wants them: sharded before they come."""
    if AxisType.Explicit not in mesh.axis_types:
        return arguments

    def place(spec: P, tree: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.sharding.reshard(x, sharding), tree)

    return jax.tree.map(place, specs, arguments, is_leaf=lambda s: isinstance(s, P))
