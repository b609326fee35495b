"""What JAX's transformations ask of a gradient transformation, for every case."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import (
    CASES,
    Case,
    apply,
    assert_close,
    assert_equal,
    cases_with,
    every_case,
    every_tree,
    is_key,
    jit,
    random_tree,
    run,
    types,
)


@every_case
def test_jit_equals_eager(case: Case):
    tx, compiled = case.build(), run(case.name, "float32")
    state = tx.init(compiled.params[0])
    assert_equal(jit(tx.init)(compiled.params[0]), state)
    updates, state = tx.update(compiled.grads[0], state, compiled.params[0])
    assert_close(compiled.updates[0], updates)
    assert_close(compiled.states[1], state)


@every_tree
@every_case
def test_one_trace_serves_all_steps(case: Case, kind: str):
    assert run(case.name, kind).num_traces == 1


@pytest.mark.parametrize("kind", ["float32", "mixed"])
@every_case
def test_scan_equals_loop(case: Case, kind: str):
    tx, loop = case.build(), run(case.name, kind)

    def step(carry: Any, g: Any) -> tuple[Any, None]:
        return apply(tx, *carry, g), None

    @jit
    def scanned(params: Any, grads: Any) -> Any:
        stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)
        return jax.lax.scan(step, (params, tx.init(params)), stacked)[0]

    got = scanned(loop.params[0], loop.grads)
    assert_close(got, (loop.params[-1], loop.states[-1]))


@every_case
def test_vmap_equals_loop(case: Case):
    loop = run(case.name, "mixed")
    # Three problems: the states after 0, 1 and 2 steps, each with its own gradient.
    args = (loop.grads, loop.states[:-1], loop.params[:-1])
    batch = [jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in args]
    got = jit(jax.vmap(loop.tx.update))(*batch)
    for i, updates in enumerate(loop.updates):
        one = jax.tree.map(lambda x: x[i], got)  # noqa: B023
        assert_close(one, (updates, loop.states[i + 1]))


@every_tree
@every_case
def test_state_keeps_its_types_and_updates_have_the_parameters(case: Case, kind: str):
    loop = run(case.name, kind)
    assert types(loop.states[0]) == types(loop.states[1]) == types(loop.states[-1])
    assert types(loop.updates[0]) == types(loop.params[0])


@cases_with("learning_rate")
def test_updates_have_the_dtype_of_the_parameters_not_of_the_gradients(case: Case):
    tx, params, grads = case.build(), random_tree("bfloat16"), random_tree("float32")
    state = tx.init(params)
    updates, after = jax.eval_shape(tx.update, grads, state, params)
    assert types(updates) == types(params)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_tree
@cases_with("momentum_dtype")
def test_the_momentum_has_the_dtype_asked_for(case: Case, kind: str, dtype: str):
    tx, params = case.build(momentum_dtype=dtype), random_tree(kind)
    state = tx.init(params)
    buffers = optax.tree.get(state, "momentum")
    assert {leaf.dtype for leaf in jax.tree.leaves(buffers)} == {jnp.dtype(dtype)}
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    assert types(updates) == types(params)


@every_case
def test_state_can_be_a_branch(case: Case):
    loop = run(case.name, "mixed")

    @jit
    def maybe(go: Any, g: Any, state: Any, params: Any) -> Any:
        def skip() -> Any:
            return jax.tree.map(jnp.zeros_like, params), state

        return jax.lax.cond(go, lambda: loop.tx.update(g, state, params), skip)

    args = (loop.grads[0], loop.states[0], loop.params[0])
    assert_close(maybe(True, *args), (loop.updates[0], loop.states[1]))
    assert_equal(maybe(False, *args)[1], loop.states[0])


@every_case
def test_extra_arguments_leave_the_program_as_it_is(case: Case):
    tx, loop = case.build(), run(case.name, "float32")
    args = (loop.grads[0], loop.states[0], loop.params[0])

    def with_extra(*args: Any) -> Any:
        return tx.update(*args, value=1.0, an_argument_nobody_knows=None)

    assert str(jax.make_jaxpr(with_extra)(*args)) == str(
        jax.make_jaxpr(tx.update)(*args)
    )


@every_case
def test_map_params_reaches_the_buffers_alone(case: Case):
    loop = run(case.name, "float32")
    state = loop.states[1]
    zeroed = optax.tree.map_params(loop.tx, jnp.zeros_like, state)
    assert types(zeroed) == types(state)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(zeroed), strict=True)
    for before, after in pairs:
        if is_key(before):
            assert_equal(before, after)
        elif before.ndim:  # the arrays of a state are buffers of the parameters
            assert before.any()
            assert not after.any()
        else:
            assert before == after == 1  # and its scalars count steps


@every_case
def test_map_params_passes_other_trees_along(case: Case):
    tx, params = case.build(), random_tree("float32")
    paths = jax.tree_util.tree_map_with_path(lambda keys, _: str(keys), params)
    shapes = {str(keys): x.shape for keys, x in jax.tree.leaves_with_path(params)}
    seen: dict[str, Any] = {}

    def note(x: Any, path: str) -> None:
        seen[path] = x.shape

    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    optax.tree.map_params(
        tx,
        lambda x, path: None if masked(x) else note(x, path),
        tx.init(params),
        paths,
        is_leaf=masked,
    )
    assert seen == ({} if case.make.__name__ == "scale_by_lmo" else shapes)


@every_case
def test_parameters_are_asked_for_only_where_they_matter(case: Case):
    tx, loop = case.build(), run(case.name, "float32")
    if case.needs_params:
        with pytest.raises(ValueError, match="`params`"):
            jax.eval_shape(tx.update, loop.grads[0], loop.states[0])
    else:
        updates, state = jit(tx.update)(loop.grads[0], loop.states[0])
        assert_close((updates, state), (loop.updates[0], loop.states[1]))


@every_tree
@every_case
def test_a_zero_gradient_moves_nothing_but_by_decay(case: Case, kind: str):
    loop = run(case.name, kind)
    params = loop.params[0]
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = loop.update(zeros, loop.states[0], params)
    for update, x in zip(
        jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
    ):
        assert jnp.isfinite(update).all()
        moved = update.any()
        # Decay pulls every weight to zero: the update has the other sign everywhere.
        assert (update * x <= 0).all() if case.moves_by_decay else not moved
        assert moved == case.moves_by_decay
    # By NumPy: jax 0.10.0 remembers `jnp.isfinite` of a scalar with the mesh of a test
    # that ran before in the same process.
    numbers = (np.asarray(x) for x in jax.tree.leaves(state) if not is_key(x))
    assert all(np.isfinite(x.astype(np.float64)).all() for x in numbers)


def test_names_of_cases_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)
