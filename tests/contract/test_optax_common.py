"""What Optax asks of the optimizers contributed to it, asked of ours."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import jit, types

import dropmuon_optax as dm
from dropmuon_optax import linalg, norms

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "muon": dm.muon,
    "gluon": dm.gluon,
    "scion": functools.partial(dm.scion, constrained=False),
}
RATE = 1e-2

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(autouse=True)
def _promotion() -> Iterator[None]:
    """As in Optax's own tests; its adam and its schedules promote implicitly."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Target(NamedTuple):
    start: Any
    optimum: Any
    loss: Callable[[Any], jax.Array]


def distance(params: Any, optimum: Any) -> jax.Array:
    """The parabola ‖params − optimum‖²."""
    squares = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), params, optimum)
    return sum(jax.tree.leaves(squares))


def parabola(optimum: Any, start: Any = None) -> Target:
    optimum = jax.tree.map(lambda x: jnp.array(x, jnp.float32), optimum, is_leaf=_rows)
    if start is None:
        start = jax.tree.map(jnp.zeros_like, optimum)
    return Target(start, optimum, lambda x: distance(x, optimum))


def _rows(x: Any) -> bool:
    return isinstance(x, list)


def rosenbrock(x: jax.Array) -> jax.Array:
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


TARGETS = {
    "parabola": parabola([1.0, -1.0, 1.0], jnp.array([-1.0, 10.0, 1.0])),
    "rosenbrock": Target(jnp.zeros(2), jnp.ones(2), rosenbrock),
    "matrix": parabola([[3.0, -2.0], [1.0, 4.0]]),
    "mixed": parabola(([1.0, -1.0, 2.0], [[1.0, 0.0], [-1.0, 1.0]])),
}


def minimize(tx: Any, target: Target, num_steps: int, watch: Any = None) -> Any:
    """The last parameters, and what `watch` saw of those of every step."""

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(target.loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), None if watch is None else watch(params)

    @jit
    def loop(params: Any) -> Any:
        (params, _), seen = jax.lax.scan(
            step, (params, tx.init(params)), length=num_steps
        )
        return params, seen

    return loop(target.start)


def assert_near(params: Any, optimum: Any) -> None:
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(optimum), strict=True):
        # Optax's tolerance: steps of constant length circle at their length's distance.
        np.testing.assert_allclose(x, y, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("target", TARGETS)
@every_optimizer
def test_it_finds_the_minimum(name: str, target: str):
    found, _ = minimize(OPTIMIZERS[name](learning_rate=RATE), TARGETS[target], 30_000)
    assert_near(found, TARGETS[target].optimum)


# The constrained step is Frank–Wolfe's: X ← (1 − γ)X + γ·radius·(…). With a constant γ
# it stalls where the two terms cancel, at a distance of about γ·radius. γ = 2/(k + 2)
# converges, f(Xᵏ) − f* ≤ 2LD²/(k + 2) with the diameter D of the ball, for any convex f
# whose minimum lies in the ball (Jaggi, ICML 2013, Theorem 1).
EXACT = norms.Spectral(num_steps=10, coefficients=linalg.DEEPSEEK_V4)
BALLS = {
    "parabola": (norms.RMS(), 12.0),
    "matrix": (EXACT, 6.0),
    "mixed": (norms.Frobenius(), 4.0),
}


def frank_wolfe(target: str, momentum: float) -> Any:
    norm, radius = BALLS[target]
    layers = dm.layers_by_path(None, [("", norm, radius)])
    rate = lambda count: 2 / (count + 2)  # noqa: E731
    return dm.scion(rate, layers, momentum=momentum)


def lies_in_ball(target: str, params: Any) -> jax.Array:
    norm, radius = BALLS[target]
    lengths = [norm.norm(jnp.atleast_2d(x)) for x in jax.tree.leaves(params)]
    # The oracle's singular values are 1 to 5e-4, everything else to float32.
    return jnp.all(jnp.stack(lengths) <= radius * 1.001)


@pytest.mark.parametrize("target", BALLS)
def test_constrained_scion_converges_at_the_rate_of_frank_wolfe(target: str):
    aim, num_steps = TARGETS[target], 2000
    diameters = {"parabola": 2 * 12 * 3**0.5, "matrix": 2 * 6 * 2**0.5}
    square = 2 * 8.0**2 if target == "mixed" else diameters[target] ** 2  # D²
    _, losses = minimize(frank_wolfe(target, 0.0), aim, num_steps, watch=aim.loss)
    bounds = 2 * 2 * square / (np.arange(1, num_steps + 1) + 2)  # L = 2
    assert (np.asarray(losses) <= bounds).all()


@pytest.mark.parametrize("target", BALLS)
def test_constrained_scion_finds_the_minimum_with_momentum(target: str):
    found, _ = minimize(frank_wolfe(target, 0.9), TARGETS[target], 30_000)
    assert_near(found, TARGETS[target].optimum)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("target", BALLS)
def test_constrained_scion_never_leaves_the_ball(target: str, momentum: float):
    aim = TARGETS[target]
    # Downhill for ever: the minimum of this target is at infinity.
    uphill = Target(aim.start, None, lambda x: -aim.loss(x))
    for direction in (aim, uphill):
        norm, radius = BALLS[target]
        assert lies_in_ball(target, direction.start)
        found, inside = minimize(
            frank_wolfe(target, momentum),
            direction,
            200,
            watch=functools.partial(lies_in_ball, target),
        )
        assert inside.all()
        if direction is uphill:  # and reach the sphere
            assert norm.norm(jnp.atleast_2d(jax.tree.leaves(found)[0])) > 0.9 * radius


@every_optimizer
def test_injected_hyperparameters_change_nothing(name: str):
    kernel = jnp.ones((2, 5, 2))  # a convolution, by name: three axes alone may be any
    params = {"dense": jnp.full((2, 3), -1.0), "conv": {"kernel": kernel}}
    grads = jax.tree.map(jnp.negative, params)
    plain = OPTIMIZERS[name](learning_rate=RATE)
    inject = optax.inject_hyperparams(OPTIMIZERS[name])(learning_rate=RATE)
    updates, state = jit(plain.update)(grads, jit(plain.init)(params), params)
    others, other = jit(inject.update)(grads, jit(inject.init)(params), params)
    pairs = ((others, updates), (other.inner_state, state))
    for got, expected in pairs:
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)  # Optax's tolerance


@pytest.mark.parametrize("shape", [(2,), (2, 2)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@every_optimizer
def test_updates_and_accumulated_updates_keep_the_dtype(
    name: str, dtype: str, shape: tuple[int, ...]
):
    params = jnp.arange(1, 1 + np.prod(shape)).reshape(shape).astype(dtype)
    tx = OPTIMIZERS[name](learning_rate=RATE)
    many = optax.MultiSteps(tx, every_k_schedule=4)
    for one in (tx, many):
        state = jax.eval_shape(one.init, params)
        updates, _ = jax.eval_shape(one.update, params, state, params)
        assert updates.dtype == params.dtype
    updates, _ = jit(many.update)(params, many.init(params), params)
    assert not updates.any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@every_optimizer
def test_the_state_is_stable_in_every_dtype(name: str, dtype: str):
    with jax.enable_x64(dtype == "float64"):
        params = (jnp.array([-1.0, 10.0, 1.0], dtype), jnp.eye(2, dtype=dtype))
        tx = OPTIMIZERS[name](learning_rate=RATE)
        state = tx.init(params)

        @jit
        def step(params: Any, state: Any, go: Any) -> Any:
            grads = jax.grad(lambda x: distance(x, jax.tree.map(jnp.ones_like, x)))(
                params
            )
            return jax.lax.cond(
                go, lambda: tx.update(grads, state, params), lambda: (params, state)
            )

        for go in (True, False):
            updates, after = step(params, state, go)
            assert types(after) == types(state)
            assert types(updates) == types(params)
            state = after
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@every_optimizer
def test_no_second_compilation_and_no_complaint_about_extra_arguments(name: str):
    target, tx = TARGETS["rosenbrock"], OPTIMIZERS[name](learning_rate=RATE)

    @jit
    def step(params: Any, state: Any) -> Any:
        grads = jax.grad(target.loss)(params)
        updates, state = tx.update(grads, state, params, nobody_expects_this=1)
        return optax.apply_updates(params, updates), state

    params, state = step(target.start, tx.init(target.start))
    step(params, state)
    assert step._cache_size() == 1


@every_optimizer
def test_a_constant_schedule_is_a_constant(name: str):
    target = TARGETS["mixed"]
    constant = OPTIMIZERS[name](learning_rate=RATE)
    schedule = OPTIMIZERS[name](learning_rate=optax.constant_schedule(RATE))
    one, _ = minimize(constant, target, 10)
    two, _ = minimize(schedule, target, 10)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)  # the same program but for a cast
