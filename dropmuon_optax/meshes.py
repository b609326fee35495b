"""Where arrays lie on a mesh of devices, for axes of either kind.

Explicit axes stand in an array's type, so what mixes entries across them must be moved
first and back afterwards. Auto axes don't; the compiler moves what it has to, unless a
constraint says where. Manual axes (inside `shard_map`) are nobody's business here.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array


def has_auto(x: Array) -> bool:
    """Whether the compiler may choose how `x` is sharded."""
    return bool(_axes(jax.typeof(x).sharding.mesh, AxisType.Auto))


def gathered(x: Array) -> Array:
    """`x` with no axis sharded over Explicit axes, so that it may be reshaped."""
    return _reshard(x, jax.typeof(x).sharding.mesh, PartitionSpec(*[None] * x.ndim))


def like(x: Array, other: Array) -> Array:
    """`x` sharded over Explicit axes as `other` is, which has its shape."""
    sharding = jax.typeof(other).sharding
    return _reshard(x, sharding.mesh, sharding.spec)


def rest_like(x: Array, other: Array) -> Array:
    """`x` sharded over Explicit axes as `other` is, but whole along its first axis."""
    sharding = jax.typeof(other).sharding
    return _reshard(x, sharding.mesh, PartitionSpec(None, *sharding.spec[1:]))


def rows_like(x: Array, other: Array) -> Array:
    """`x` sharded over Explicit axes along its first axis only, as `other` is."""
    sharding = jax.typeof(other).sharding
    spec = PartitionSpec(sharding.spec[0], *[None] * (x.ndim - 1))
    return _reshard(x, sharding.mesh, spec)


def num_devices(x: Array) -> int:
    """Over how many devices `spread` spreads."""
    mesh = jax.typeof(x).sharding.mesh
    axes = _axes(mesh, AxisType.Explicit) or _axes(mesh, AxisType.Auto)
    return math.prod(mesh.shape[axis] for axis in axes)


def spread(stack: Array, *columns: Array) -> list[Array]:
    """Arrays of one leading length, padded and spread over all devices along it.

    Every device then holds whole matrices, and no product needs another device. A
    single matrix is gathered instead: all devices do the same. Of k sharded matrices on
    n devices gathering sends each k of them, moving them there and back 2⌈k/n⌉: that
    is less, or as much, unless k = 1.
    """
    mesh = jax.typeof(stack).sharding.mesh
    explicit, auto = _axes(mesh, AxisType.Explicit), _axes(mesh, AxisType.Auto)
    axes = explicit or auto
    size = num_devices(stack)
    if size == 1:
        return [stack, *columns]
    length = stack.shape[0]
    if length == 1:
        axes, size = (), 1
    placed = []
    for x in (stack, *columns):
        x = jnp.pad(x, [(0, -length % size)] + [(0, 0)] * (x.ndim - 1))
        rest = [None] * (x.ndim - 1)
        if explicit:
            x = _reshard(x, mesh, PartitionSpec(axes or None, *rest))
        if auto:  # on a mesh of both kinds: whole along the Auto axes
            spec = PartitionSpec(None if explicit else axes or None, *rest)
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
        placed.append(x)
    return placed


def _reshard(x: Array, mesh: Any, spec: PartitionSpec) -> Array:
    if not _axes(mesh, AxisType.Explicit):
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))


def _axes(mesh: Any, kind: AxisType) -> tuple[str, ...]:
    return tuple(
        name
        for name, axis_type in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if axis_type == kind
    )
