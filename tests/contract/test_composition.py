"""Every case inside Optax's own wrappers."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import (
    Case,
    assert_close,
    assert_equal,
    case_named,
    cases_with,
    every_case,
    jit,
    run,
    types,
)

import dropmuon_optax as dm


@pytest.fixture(autouse=True)
def _promotion() -> Iterator[None]:
    """The running mean, the schedules and the injection of Optax promote implicitly."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@every_case
def test_chain(case: Case):
    tx, loop = case.build(), run(case.name, "float32")
    chain = optax.chain(optax.scale(-3.0), tx, optax.scale(2.0))

    @jit
    def both(g: Any, params: Any) -> Any:
        got, _ = chain.update(g, chain.init(params), params)
        scaled = jax.tree.map(lambda x: -3 * x, g)
        return got, tx.update(scaled, tx.init(params), params)[0]

    got, alone = both(loop.grads[0], loop.params[0])
    assert_close(got, jax.tree.map(lambda x: 2 * x, alone))


@every_case
def test_partition_moves_its_share_as_if_alone(case: Case):
    tx, loop = case.build(), run(case.name, "float32")
    mine = ("embed", "block_0", "conv")

    def labels(params: Any) -> Any:
        return {key: "mine" if key in mine else "theirs" for key in params}

    parts = optax.partition({"mine": tx, "theirs": optax.sgd(0.5)}, labels)

    @jit
    def both(g: Any, params: Any) -> Any:
        got, _ = parts.update(g, parts.init(params), params)
        own_g, own = ({key: tree[key] for key in mine} for tree in (g, params))
        return got, tx.update(own_g, tx.init(own), own)[0]

    got, alone = both(loop.grads[0], loop.params[0])
    sgd = jax.tree.map(lambda x: -0.5 * x, loop.grads[0])
    assert_close(got, {**sgd, **alone})


@every_case
def test_masked_moves_its_leaves_as_if_alone(case: Case):
    tx, loop = case.build(), run(case.name, "float32")

    def mask(params: Any) -> Any:
        return {k: {name: name != "bias" for name in v} for k, v in params.items()}

    def own(params: Any) -> Any:
        return {
            k: {name: x for name, x in v.items() if name != "bias"}
            for k, v in params.items()
        }

    masked = optax.masked(tx, mask)

    @jit
    def both(g: Any, params: Any) -> Any:
        got, _ = masked.update(g, masked.init(params), params)
        return got, tx.update(own(g), tx.init(own(params)), own(params))[0]

    got, alone = both(loop.grads[0], loop.params[0])
    assert_close(own(got), alone)
    for block in ("block_0", "block_1"):  # Optax lets the others pass
        assert_equal(got[block]["bias"], loop.grads[0][block]["bias"])


def test_masked_layers_keep_their_place_in_the_order():
    params = run("gluon", "float32").params[0]
    layers = dm.layers_by_path(["embed", r"block_(\d+)", "conv|wide", "head"])
    seen = []

    def noting(tree: Any) -> Any:
        seen.append(layers(tree))
        return seen[-1]

    labels = {key: "rest" if key == "block_0" else "gluon" for key in params}
    parts = {"gluon": dm.gluon(0.125, noting), "rest": optax.sgd(0.5)}
    optax.partition(parts, labels).init(params)
    assert seen[-1]["block_1"]["kernel"].index == 2
    assert seen[-1]["head"]["kernel"].index == 4


@every_case
def test_multi_steps_is_one_step_with_the_mean_gradient(case: Case):
    tx, loop = case.build(), run(case.name, "float32", 3)
    grads = [*loop.grads, loop.params[0]]
    multi = optax.MultiSteps(tx, every_k_schedule=4)
    update, state = jit(multi.update), multi.init(loop.params[0])
    for k, g in enumerate(grads):
        updates, state = update(g, state, loop.params[0])
        if k < 3:
            assert_equal(updates, jax.tree.map(jnp.zeros_like, updates))
            assert_equal(state.inner_opt_state, loop.states[0])
    mean = jax.tree.map(lambda *g: sum(g) / 4, *grads)
    expected = loop.update(mean, loop.states[0], loop.params[0])
    assert_close((updates, state.inner_opt_state), expected)


@every_case
def test_multi_steps_keeps_types(case: Case):
    loop = run(case.name, "mixed")
    multi = optax.MultiSteps(case.build(), every_k_schedule=4)
    state = multi.init(loop.params[0])
    updates, after = jax.eval_shape(multi.update, loop.grads[0], state, loop.params[0])
    assert types(updates) == types(loop.params[0])
    assert types(after) == types(state)


@every_case
def test_apply_if_finite_lets_nothing_of_a_nan_through(case: Case):
    loop = run(case.name, "mixed")
    safe = optax.apply_if_finite(case.build(), max_consecutive_errors=3)
    update, state = jit(safe.update), safe.init(loop.params[0])
    bad = jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(jnp.nan), loop.grads[0])
    updates, state = update(bad, state, loop.params[0])
    assert_equal(updates, jax.tree.map(jnp.zeros_like, updates))
    assert_equal(state.inner_state, loop.states[0])
    updates, state = update(loop.grads[0], state, loop.params[0])
    assert_close((updates, state.inner_state), (loop.updates[0], loop.states[1]))


@functools.cache
def injected(name: str, kind: str) -> Any:
    tx = case_named(name).inject()
    return jit(tx.update), tx.init(run(name, kind).params[0])


@pytest.mark.parametrize("kind", ["bfloat16", "mixed"])
@every_case
def test_inject_hyperparams_changes_nothing(case: Case, kind: str):
    loop = run(case.name, kind)
    update, state = injected(case.name, kind)
    for k, g in enumerate(loop.grads):
        updates, state = update(g, state, loop.params[k])
        assert_close(updates, loop.updates[k])
    assert_close(state.inner_state, loop.states[-1])


def with_hyperparams(state: Any, **changes: Any) -> Any:
    """The state of `inject_hyperparams` with some of them set, as a user does."""
    new = dict(state.hyperparams)
    for name, value in changes.items():
        new[name] = jnp.asarray(value, new[name].dtype)
    return state._replace(hyperparams=new)


@cases_with("learning_rate")
def test_the_injected_learning_rate_scales_the_step(case: Case):
    loop = run(case.name, "mixed")
    update, state = injected(case.name, "mixed")
    changes = {"learning_rate": 0.25}
    updates, _ = update(
        loop.grads[0], with_hyperparams(state, **changes), loop.params[0]
    )
    assert_close(updates, jax.tree.map(lambda u: 2 * u, loop.updates[0]))


@cases_with("momentum")
def test_the_injected_momentum_takes_effect(case: Case):
    loop = run(case.name, "mixed")
    update, state = injected(case.name, "mixed")
    _, state = update(loop.grads[0], state, loop.params[0])
    _, state = update(
        loop.grads[1], with_hyperparams(state, momentum=0.0), loop.params[0]
    )
    # With no weight on the old buffer, the new one is the gradient, bit for bit; of
    # float16 in float32.
    buffers = dict(
        jax.tree.leaves_with_path(optax.tree.get(state.inner_state, "momentum"))
    )
    grads = dict(jax.tree.leaves_with_path(loop.grads[1]))
    assert buffers
    for keys, buffer in buffers.items():
        wide = grads[keys].astype(buffer.dtype)
        assert_equal(buffer.reshape(wide.shape), wide)  # of one worker


@cases_with("weight_decay")
def test_the_injected_weight_decay_takes_effect(case: Case):
    loop = run(case.name, "mixed")
    update, state = injected(case.name, "mixed")
    if case.arguments.get("constrained"):
        return  # the shrink is the learning rate's, and decay is refused
    args = loop.grads[0], loop.params[0]
    names = [name for name in ("weight_decay", "adam_weight_decay") if case.takes(name)]
    none, some = (
        update(args[0], with_hyperparams(state, **dict.fromkeys(names, value)), args[1])
        for value in (0.0, 0.25)
    )
    rate = case.arguments["learning_rate"]
    expected = jax.tree.map(lambda u, x: u - (rate * 0.25) * x, none[0], args[1])
    assert_close(some[0], expected)


@cases_with("learning_rate")
def test_a_schedule_is_followed_with_and_without_injection(case: Case):
    loop = run(case.name, "float32")
    schedule = optax.piecewise_constant_schedule(0.125, {1: 2.0, 2: 4.0})
    plain = case.build(learning_rate=schedule)
    inject = case.inject(learning_rate=schedule)

    @jit
    def both(g: Any, states: Any, params: Any) -> Any:
        one, first = plain.update(g, states[0], params)
        two, second = inject.update(g, states[1], params)
        return one, two, (first, second)

    states = plain.init(loop.params[0]), inject.init(loop.params[0])
    for k, factor in enumerate((1, 2, 8)):
        one, two, states = both(loop.grads[k], states, loop.params[k])
        expected = jax.tree.map(lambda u: factor * u, loop.updates[k])  # noqa: B023
        assert_close(one, expected)
        assert_close(two, expected)


def test_a_momentum_schedule_is_followed():
    schedule = dm.gluon_momentum_schedule()
    tx, g = dm.scale_by_momentum(schedule), jnp.arange(1.0, 4.0)
    state, buffer = tx.init(g), np.zeros(3)
    for k in range(4):
        beta = 1 - (k + 1) ** -0.5
        buffer = beta * buffer + (1 - beta) * np.asarray(g) * (k + 1)
        updates, state = tx.update((k + 1) * g, state)
        # float32: a power and two roundings per step
        np.testing.assert_allclose(updates, buffer, rtol=1e-6)
