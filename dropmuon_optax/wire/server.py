"""The state of EF21: each worker's estimate, and the server's, wherever it lives.

The server's is on all workers alike, or has each matrix on the worker that owns it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dropmuon_optax.layers.leaves import path_of
from dropmuon_optax.layers.parts import narrow, widen
from dropmuon_optax.layers.trees import check_state
from dropmuon_optax.wire.messages import Memory
from dropmuon_optax.wire.ownership import Ownership
from dropmuon_optax.wire.stacks import (
    Selection,
    Stacks,
    collect,
    from_owners,
    of_owner,
    put,
    scatter,
    select,
    take,
)
from dropmuon_optax.wire.workers import per_worker


class Shared(NamedTuple):
    """Every worker is the server: the same state everywhere, shaped as the parameters.

    Attributes:
      G: the mean of the workers' estimates, float32.
      X: the iterate, float32; None if it is W.
      inner: state of the inner transformation.
      memory: of the compressor.
    """

    G: Any  # pyright: ignore
    X: Any
    inner: Any
    memory: Memory


class Owned(NamedTuple):
    """Every matrix has an owner: the n owners' stacks, (n, t, p, q), see `ownership`.

    Attributes:
      G: as in `Shared`, for each stack.
      X: as in `Shared`, for each stack.
      inner: state of each owner's inner transformation, with a leading axis n.
      memory: of the compressor, for each stack.
      layout: nothing, under a name that stands for `ownership`: files keep names and
        arrays alone, and a state of another layout isn't taken for this one.
      ownership: which matrix is where.
    """

    G: Any  # pyright: ignore
    X: Any
    inner: Any
    memory: Memory
    layout: dict[str, Any]
    ownership: Ownership

    per_worker = ("G", "X", "inner", "memory", "layout")


Server = Shared | Owned


class EF21State(NamedTuple):
    """State of `ef21`; what is each worker's own has a leading axis n.

    Attributes:
      count: k, steps taken, int32 of shape ().
      key: two words, for random compressors.
      momentum: M_j, as the parameters; None if momentum is 0.
      G_j: each worker's estimate of its M_j, as the parameters, float32.
      memory: of the workers' compressors.
      server: G, X and the inner transformation's state; `Owned` or `Shared`.
    """

    count: Any  # pyright: ignore
    key: Any
    momentum: Any
    G_j: Any
    memory: Any
    server: Any

    per_worker = ("momentum", "G_j", "memory")


def check_first(state: Any, first: EF21State, momentum: Any, server: Any) -> None:
    """Refuses the state of other options, or of another tree.

    Args:
      state: as `update` got it.
      first: shapes of what `init` returns.
      momentum: the option, for the message.
      server: likewise, the server's compressor.

    Raises:
      ValueError: naming the option, or the leaf.
    """
    if not isinstance(state, EF21State):
        raise ValueError(f"`state` must be what `init` returned, got {state!r}")
    made = "the state must be made with the options it is used with; it was made"
    if (state.momentum is None) != (first.momentum is None):
        how = "with momentum=0" if state.momentum is None else "with momentum"
        raise ValueError(f"{made} {how} and is used with momentum={momentum!r}")
    if type(state.server) is not type(first.server):
        how = "one server" if isinstance(state.server, Shared) else "owners"
        raise ValueError(
            f"{made} for {how} and is used with another `topology` or `num_workers`"
        )
    if (state.server.X is None) != (first.server.X is None):
        how = "without" if state.server.X is None else "with"
        raise ValueError(
            f"{made} {how} a server's compressor and is used with "
            f"server_compressor={server!r}"
        )


def _check_ownership(found: Ownership, wanted: Ownership) -> None:
    if found.num_owners != wanted.num_owners:
        raise ValueError(
            f"`state` must be of {wanted.num_owners} workers, got one of "
            f"{found.num_owners}"
        )
    for leaf, other in zip(wanted.leaves, found.leaves, strict=False):
        new, old = (
            (
                x.path,
                [
                    dataclasses.replace(o.stacks[piece.stack], radii=())
                    for piece in x.pieces
                ],
            )
            for x, o in ((leaf, wanted), (other, found))
        )
        if new != old:
            raise ValueError(
                "`state` must be of these layers and compressors, of "
                f"{new[0]!r} {new[1]}, got {old[0]!r} {old[1]}"
            )
    if found != wanted:
        raise ValueError("`state` must be of these layers and radii, got other ones")


def check_server(
    state: EF21State, first: EF21State, selection: Selection, inner: Any
) -> None:
    """Refuses the state of other matrices, and what can't run on some of them alone.

    Raises:
      ValueError: saying which.
    """
    server, ownership = state.server, selection.ownership
    if isinstance(server, Owned):
        _check_ownership(server.ownership, ownership)
    check_state(state, first, per_worker(first))
    if all(selection.is_whole(s) for s in range(len(ownership.stacks))):
        return
    some = {s: jnp.zeros((1, *shape)) for s, shape in selection.shapes.items()}
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(inner.init, some))
    if shapes != jax.tree.map(jnp.shape, server.inner):
        raise ValueError(
            "`inner` must keep no matrices in its state where some layers don't move, "
            f"got {jax.tree.structure(server.inner)}"
        )


def read_server(server: Server, selection: Selection, owner: Any) -> tuple[Any, ...]:
    """G and X of what moves and is this owner's: stacks (t, p, q)."""
    if isinstance(server, Owned):
        return tuple(
            None if x is None else take(selection, x, owner)
            for x in (server.G, server.X)
        )
    return tuple(
        None if x is None else own_rows(selection, x, owner)
        for x in (server.G, server.X)
    )


def write_server(
    server: Any, selection: Selection, owner: Any, G: Stacks, X: Stacks | None
) -> Any:
    """The server's state with new G and X of what moves."""

    def put_back(old: Any, new: Stacks) -> Any:
        if isinstance(server, Owned):
            return put(selection, old, new, owner)
        return _put_tree(selection, old, new)

    kept = None if X is None else put_back(server.X, X)
    return server._replace(G=put_back(server.G, G), X=kept)


def own_rows(selection: Selection, tree: Any, owner: Any) -> Stacks:
    """What moves of a tree and is this owner's: stacks (t, p, q)."""
    stacks = collect(selection, narrow(tree, selection.parts))
    return of_owner(selection, stacks, owner)


def _put_tree(selection: Selection, tree: Any, moved: Stacks) -> Any:
    like = narrow(tree, selection.parts)
    new = scatter(selection, moved, like)
    return widen(tree, new, selection.parts)


def iterate(server: Server) -> dict[str, Any]:
    """X by path; nothing where X is W."""
    if server.X is None:
        return {}
    if isinstance(server, Shared):
        flat, _ = jax.tree_util.tree_flatten_with_path(server.X)
        return {path_of(keys): leaf for keys, leaf in flat}
    whole = select(server.ownership)
    n = server.ownership.num_owners
    for x in server.X.values():
        if x.shape[0] != n:
            raise ValueError(
                f"`state` must hold all {n} workers' parts, outside of `worker_map`, "
                f"got those of {x.shape[0]}"
            )
    leaves = [leaf for leaf, _ in whole.leaves]
    like = [jnp.zeros((), jnp.float32) for _ in leaves]
    found = scatter(whole, from_owners(whole, server.X), like)
    return {leaf.path: x for leaf, x in zip(leaves, found, strict=True)}
