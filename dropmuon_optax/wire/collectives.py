"""Rows of bytes between workers: the collectives that EF21-Muon needs, and no others.

They run under `jax.shard_map` for real and under `jax.vmap(axis_name=...)` as a
simulation. What every device has received alike is typed as replicated, so that
`shard_map` refuses a program in which replicas could drift apart.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt8

from dropmuon_optax import checks
from dropmuon_optax.nouns import Noun

Pairs = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True, repr=False)
class Axis(Noun):
    """The workers: an axis name of `jax.shard_map` or `jax.vmap`, and its size.

    Attributes:
      name: the axis over which the workers are spread.
      size: n, the number of workers. A single one needs no axis.
      local: a second axis, over the devices of one worker (the devices of a node, say),
        which share the worker's traffic; None if a worker is one device.

    Raises:
      ValueError: if an attribute is none of that.
    """

    name: str
    size: int
    local: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"`axis_name` must be a name, got {self.name!r}")
        checks.positive_int("num_workers", self.size)
        if self.local is not None and (
            not isinstance(self.local, str) or self.local == self.name
        ):
            raise ValueError(
                f"`local_axis_name` must be None or a name other than {self.name!r}, "
                f"got {self.local!r}"
            )

    def check(self) -> None:
        """Refuses a program in which the axis is not in scope, or has another size.

        Raises:
          ValueError: naming the axis.
        """
        if not is_bound(self.name):
            if self.size > 1:
                raise ValueError(
                    f"`axis_name` must be in scope for {self.size} workers (run the "
                    f"step through `worker_map`), got {self.name!r}"
                )
        elif (size := jax.lax.axis_size(self.name)) != self.size:
            raise ValueError(
                f"`num_workers` must be the size of the axis {self.name!r}, {size}, "
                f"got {self.size}"
            )

    def check_own(self, updates: Any, estimate: Any, active: Any) -> None:
        """Refuses gradients that `jax.shard_map` has summed over the workers.

        Args:
          updates: a worker's gradients.
          estimate: what is surely each worker's own, G_j.
          active: the layers that move; None is all.

        Raises:
          ValueError: if the types say that no gradient differs between workers.
        """
        # Without `check_vma` types say nothing, and nothing is summed. The gradients of
        # layers that don't move may be constants.
        typed = any(self.name in _varying(x) for x in jax.tree.leaves(estimate))
        if not typed or (active is not None and not any(active)):
            return
        for name in filter(None, (self.name, self.local)):
            if not any(name in _varying(g) for g in jax.tree.leaves(updates)):
                raise ValueError(
                    "gradients must be each worker's own, got ones summed over "
                    f"{name!r}: differentiate at `dm.local_params(params, {name!r})`"
                )
        if self.local is not None and not is_bound(self.local):
            raise ValueError(f"`local_axis_name` must be in scope, got {self.local!r}")

    def index(self) -> Any:
        """Which worker this is: 0, …, n − 1."""
        return jax.lax.axis_index(self.name) if is_bound(self.name) else 0

    def mean_within(self, tree: Any) -> Any:
        """The mean over the devices of one worker, dense."""
        return tree if self.local is None else jax.lax.pmean(tree, self.local)

    def exchange(self, rows: UInt8[Array, "n size"]) -> UInt8[Array, "n size"]:
        """Row j goes to worker j; returns the rows that came, row j from worker j."""
        if not is_bound(self.name):
            return rows
        share, size = self._share(rows)
        got = jax.lax.all_to_all(share, self.name, 0, 0, tiled=True)
        return self._whole(got, size)

    def gather(self, row: UInt8[Array, " size"]) -> UInt8[Array, "n size"]:
        """Every worker's row, on every worker."""
        if not is_bound(self.name):
            return row[None]
        share, size = self._share(row[None])
        return self._whole(_all_gather(share[0], self.name), size)

    def send(self, row: Shaped[Array, " size"], pairs: Pairs) -> Array:
        """A row from one worker to another, for each of some pairs (from, to).

        Nothing that means anything comes to those that are nobody's second.
        """
        if self.name not in _manual_axes():  # a simulation wants all n of them
            senders = set(range(self.size)) - {a for a, _ in pairs}
            others = set(range(self.size)) - {b for _, b in pairs}
            pairs = [*pairs, *zip(sorted(senders), sorted(others), strict=True)]
        share, size = self._share(row[None])
        return self._whole(jax.lax.ppermute(share, self.name, pairs), size)[0]

    def _share(self, rows: Array) -> tuple[Array, int]:
        """The part of the rows that this device of the worker carries."""
        size = rows.shape[1]
        if self.local is None:
            return rows, size
        carriers = jax.lax.axis_size(self.local)
        padded = jnp.pad(rows, ((0, 0), (0, -size % carriers)))
        width = padded.shape[1] // carriers
        start = jax.lax.axis_index(self.local) * width
        return jax.lax.dynamic_slice_in_dim(padded, start, width, axis=1), size

    def _whole(self, parts: Array, size: int) -> Array:
        """The inverse of `_share`, through the devices of the worker."""
        if self.local is None:
            return parts
        whole = _all_gather(parts, self.local, axis=1, tiled=True)
        return whole[:, :size]


def local_params(params: Any, axis_name: str | tuple[str, ...]) -> Any:
    """The parameters as each worker's own, so that their gradients stay its own.

    `jax.shard_map` sums the gradients of replicated parameters over the workers,
    silently. Wrap the parameters in this before `jax.value_and_grad`; it moves no
    byte. Where the axis isn't one of `shard_map`, nothing needs to be done or is.

    Args:
      params: the parameters, replicated.
      axis_name: the axis of the workers, or several.

    Returns:
      The same values.

    Examples:
      Two workers with a gradient each:

      >>> def gradient(w, x):
      ...     return jax.grad(lambda w: w * x)(local_params(w, "data"))
      >>> one_each = jax.vmap(gradient, in_axes=(None, 0), axis_name="data")
      >>> one_each(jnp.ones(()), jnp.array([3.0, 4.0]))
      Array([3., 4.], dtype=float32)
    """
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    return jax.tree.map(lambda x: _vary(x, names), params)


def is_bound(axis_name: str) -> bool:
    """Whether the axis is in scope."""
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def _all_gather(x: Array, axis_name: str, **how: Any) -> Array:
    if axis_name not in _manual_axes():
        return jax.lax.all_gather(x, axis_name, **how)
    x = _vary(x, (axis_name,))
    return jax.lax.all_gather(x, axis_name, to="invarying", **how)


def _varying(x: Any) -> Any:
    """The axes of `shard_map` over which `x` is typed as varying."""
    kind = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else kind.vma


def _vary(x: Any, names: tuple[str, ...]) -> Any:
    """`x` typed as varying over those of the axes that belong to `shard_map`."""
    varying = _varying(x)
    missing = tuple(n for n in names if n in _manual_axes() and n not in varying)
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _manual_axes() -> tuple[str, ...]:
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)
