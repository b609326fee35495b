"""What JAX's transformations ask of a gradient transformation, for every case."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from cases import (
    CASES,
    Case,
    assert_close,
    assert_equal,
    cases_with,
    every_case,
    every_tree,
    gradients,
    jit,
    random_tree,
    run,
    stepper,
    types,
)


@every_case
def test_jit_equals_eager(case: Case):
    tx, params = case.build(), random_tree("mixed")
    eager, compiled = (params, tx.init(params)), (params, jit(tx.init)(params))
    assert_equal(eager, compiled)
    for g in gradients("mixed", 2):
        eager = stepper(tx)(*eager, g)
        compiled = jit(stepper(tx))(*compiled, g)
    assert_close(compiled, eager)


@every_tree
@every_case
def test_one_trace_serves_all_steps(case: Case, kind: str):
    tx, params, num_traces = case.build(), random_tree(kind), 0

    @jit
    def step(params: Any, state: Any, g: Any) -> tuple[Any, Any]:
        nonlocal num_traces
        num_traces += 1
        return stepper(tx)(params, state, g)

    state = tx.init(params)
    for g in gradients(kind, 4):
        params, state = step(params, state, g)
    assert num_traces == 1


@every_tree
@every_case
def test_scan_equals_loop(case: Case, kind: str):
    tx, params, grads = case.build(), random_tree(kind), gradients(kind, 3)
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)

    def step(carry: Any, g: Any) -> tuple[Any, None]:
        return stepper(tx)(*carry, g), None

    @jit
    def scanned(params: Any) -> Any:
        return jax.lax.scan(step, (params, tx.init(params)), stacked)[0]

    assert_close(scanned(params), run(tx, params, grads))


@every_case
def test_vmap_equals_loop(case: Case):
    tx, problems = case.build(), [random_tree("mixed", seed) for seed in (10, 20)]
    grads = [random_tree("mixed", seed) for seed in (11, 21)]
    both = jax.tree.map(lambda *x: jnp.stack(x), *problems)
    both_grads = jax.tree.map(lambda *g: jnp.stack(g), *grads)

    @jit
    @jax.vmap
    def batched(params: Any, g: Any) -> Any:
        return stepper(tx)(params, tx.init(params), g)

    got = batched(both, both_grads)
    for i, (params, g) in enumerate(zip(problems, grads, strict=True)):
        assert_close(jax.tree.map(lambda x: x[i], got), run(tx, params, [g]))  # noqa: B023


@every_tree
@every_case
def test_state_keeps_its_types_and_updates_have_the_parameters(case: Case, kind: str):
    tx, params = case.build(), random_tree(kind)
    state = tx.init(params)
    updates, after = jit(tx.update)(params, state, params)
    assert types(state) == types(after)
    assert types(updates) == types(params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_tree
@cases_with("momentum_dtype")
def test_the_momentum_has_the_dtype_asked_for(case: Case, kind: str, dtype: str):
    tx, params = case.build(momentum_dtype=dtype), random_tree(kind)
    state = tx.init(params)
    buffers = optax.tree.get(state, "momentum")
    assert {leaf.dtype for leaf in jax.tree.leaves(buffers)} == {jnp.dtype(dtype)}
    updates, after = jit(tx.update)(params, state, params)
    assert types(state) == types(after)
    assert types(updates) == types(params)


@every_tree
@every_case
def test_state_can_be_a_branch(case: Case, kind: str):
    tx, params = case.build(), random_tree(kind)
    state = tx.init(params)

    @jit
    def maybe(go: Any) -> Any:
        def skip() -> Any:
            return jax.tree.map(jnp.zeros_like, params), state

        return jax.lax.cond(go, lambda: tx.update(params, state, params), skip)

    assert_close(maybe(True), jit(tx.update)(params, state, params))
    assert_equal(maybe(False)[1], state)


@every_case
def test_extra_arguments_are_accepted_and_change_nothing(case: Case):
    tx, params = case.build(), random_tree("float32")
    state = tx.init(params)

    @jit
    def with_extra(extra: Any) -> Any:
        return tx.update(params, state, params, value=extra, unheard_of=extra)

    assert_equal(with_extra(1.0), jit(tx.update)(params, state, params))


@every_case
def test_map_params_reaches_the_buffers_alone(case: Case):
    tx, params = case.build(), random_tree("float32")
    _, state = run(tx, params, gradients("float32", 1))
    zeroed = optax.tree.map_params(tx, jnp.zeros_like, state)
    assert types(zeroed) == types(state)
    for before, after in zip(
        jax.tree.leaves(state), jax.tree.leaves(zeroed), strict=True
    ):
        if before.ndim:  # every array in a state is a buffer of a parameter
            assert not after.any()
        else:
            assert before == after == 1  # and every scalar a step count


@every_case
def test_map_params_passes_other_trees_along(case: Case):
    tx, params = case.build(), random_tree("float32")
    names = jax.tree_util.tree_map_with_path(lambda keys, _: str(keys), params)
    seen = []
    optax.tree.map_params(
        tx, lambda x, name: seen.append((name, x.shape)), tx.init(params), names
    )
    shapes = {str(keys): x.shape for keys, x in jax.tree.leaves_with_path(params)}
    assert all(shapes[name] == shape for name, shape in seen)
    assert len(seen) >= (0 if case.name == "lmo" else len(shapes))


@every_case
def test_parameters_are_asked_for_only_where_they_matter(case: Case):
    tx, params = case.build(), random_tree("float32")
    state = tx.init(params)
    if case.needs_params:
        with pytest.raises(ValueError, match="`params`"):
            tx.update(params, state)
    else:
        assert_equal(
            jit(tx.update)(params, state), jit(tx.update)(params, state, params)
        )


@every_case
def test_a_zero_gradient_moves_nothing_but_by_decay(case: Case):
    tx, params = case.build(), random_tree("mixed")
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jit(tx.update)(zeros, tx.init(params), params)
    for update in jax.tree.leaves(updates):
        assert jnp.isfinite(update).all()
        assert case.needs_params or not update.any()


@cases_with("learning_rate")
def test_the_learning_rate_scales_the_step(case: Case):
    params, grads = random_tree("float32"), random_tree("float32", 1)

    def updates(rate: Any) -> Any:
        tx = case.build(learning_rate=rate)
        return jit(tx.update)(grads, tx.init(params), params)[0]

    doubled = jax.tree.map(lambda u: 2 * u, updates(0.125))
    assert_close(updates(0.25), doubled)
    assert_equal(updates(0.0), jax.tree.map(jnp.zeros_like, params))


@cases_with("learning_rate")
def test_steps_go_downhill(case: Case):
    params = random_tree("float32")
    tx = case.build(learning_rate=2**-7)

    def loss(params: Any) -> Any:
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    after, _ = run(tx, params, [jax.grad(loss)(params)])
    assert loss(after) < loss(params)


def test_names_of_cases_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)
