"""The state before the first step."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct

from dropmuon_optax import linalg
from dropmuon_optax.compressors import Compressor
from dropmuon_optax.layers.parts import narrow
from dropmuon_optax.layers.rules import Rules
from dropmuon_optax.wire.messages import Memory, first_memory
from dropmuon_optax.wire.server import EF21State, Owned, Server, Shared
from dropmuon_optax.wire.stacks import Selection, collect, of_owners


def first_state(
    params: Any,
    whole: Selection,
    *,
    num_workers: int,
    inner: Any,
    key: Any,
    shared: bool,
    keeps_momentum: bool,
    keeps_x: bool,
    remembers: bool,
    dtype: Any,
) -> EF21State:
    """The state before the first step: M_j = G_j = G = 0 and X = W.

    `optax.tree.map_params` asks for the state of a placeholder, to see what is shaped
    as the parameters are: no owners' stacks, and no memory.
    """

    def zeros(dtype: Any) -> Any:
        return jax.tree.map(
            lambda x: jnp.zeros(
                (num_workers, *jnp.shape(x)), dtype or linalg.ranged_dtype(x)
            ),
            params,
        )

    counts = {s: len(own) for s, own in whole.sent.members.items()}
    memory = first_memory(whole.workers, whole.sent.shapes, counts)
    server: Any = _first_server(inner, params, whole, shared, keeps_x)
    each: Any = _repeated(memory, num_workers)
    if _is_placeholder(params):
        server = server if shared else jnp.zeros(())
        each = jnp.zeros(()) if remembers else each
    return EF21State(
        count=jnp.zeros((), jnp.int32),
        key=jnp.array(key, copy=True),  # whoever donates the state keeps the key
        momentum=zeros(dtype) if keeps_momentum else None,
        G_j=zeros(jnp.float32),
        memory=each,
        server=server,
    )


def _is_placeholder(params: Any) -> bool:
    """Whether this is Optax's stand-in for a tree: a node without leaves."""
    known = dict | list | tuple | None
    return not jax.tree.leaves(params) and not isinstance(params, known)


def _first_server(
    inner: Any, params: Any, whole: Selection, shared: bool, keeps_x: bool
) -> Server:
    n = whole.ownership.num_owners
    abstract = any(isinstance(x, ShapeDtypeStruct) for x in jax.tree.leaves(params))
    if abstract and keeps_x:
        raise ValueError(
            "`params` must be arrays where a server's compressor keeps X = W, got "
            "shapes; `jax.eval_shape(tx.init, params)` makes the state's shapes of them"
        )
    run = jax.eval_shape if abstract else lambda fun, tree: fun(tree)
    stacks = run(
        lambda tree: of_owners(whole, collect(whole, narrow(tree, whole.parts))), params
    )
    counts = {s: t * whole.ownership.parts[s] for s, t in whole.counts.items()}
    memory = first_memory(whole.servers, whole.sent.shapes, counts)
    X = run(lambda tree: _copied(tree), params) if shared else stacks
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), X)
    stacks = jax.tree.map(jnp.zeros_like, stacks) if abstract else stacks
    X = X if keeps_x else None
    if shared:
        state = inner.init({s: x[0] for s, x in stacks.items()})
        return Shared(zeros, X, state, memory)
    state = jax.vmap(inner.init, axis_size=n)(stacks)
    layout = {whole.ownership.name: jnp.zeros(n, jnp.int32)}
    return Owned(zeros, X, state, _repeated(memory, n), layout, whole.ownership)


def _copied(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), tree)


def _repeated(memory: Memory, n: int) -> Memory:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), memory)


def may_remember(rules: Compressor | Rules | None) -> bool:
    """Whether a compressor has memory, or one of those in a list of rules."""
    if rules is None or isinstance(rules, Compressor):
        return rules is not None and rules.stateful
    return any(compressor.stateful for _, compressor in rules)
