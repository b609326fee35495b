"""Smoothness against closed forms, a NumPy oracle, SciPy, and mere noise."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import dropmuon_optax as dm
from dropmuon_optax.theory import smoothness
from dropmuon_optax.theory.fit import fit_line, no_line, refine

EXACT = dm.norms.Spectral(num_steps=None)
one_norm = lambda norm: dm.layers_by_path(None, [("", norm, 1.0)])  # noqa: E731


def rows(*points):
    return jax.tree.map(lambda *row: jnp.concatenate(row), *points)


def loss(l0, l1, x, y, asymmetry=5.0):
    """The paper's, with the authors' λ."""
    r = y - l0 - l1 * x
    return np.sum(r**2) + asymmetry * np.sum(np.maximum(0, r) ** 2)


# ------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    "norm",
    [EXACT, dm.norms.Frobenius(), dm.norms.MaxEntry(), dm.norms.scion_spectral(EXACT)],
    ids=repr,
)
def test_a_quadratic_has_the_operator_norm_along_the_step_and_no_l1(norm):
    """For f = ½⟨X, AXB⟩, ∇f(Y) − ∇f(X) = A(Y − X)B: L̂ = ‖ADB‖⋆/‖D‖, any length."""
    rng = np.random.default_rng(0)
    a, b, x, d = (
        jnp.asarray(rng.normal(size=s)) for s in ((5, 5), (3, 3), (5, 3), (5, 3))
    )
    a, b = a @ a.T, b @ b.T
    grad, layers = lambda x: a @ x @ b, one_norm(norm)
    points = dm.measure_smoothness(grad, layers, x, x + d, shares=(1.0, 0.1, 3))
    expected = norm.dual_norm(a @ d @ b) / norm.norm(d)
    np.testing.assert_allclose(points.smoothness[:, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(
        points.step[:, 0], norm.norm(d) * jnp.array([1, 0.1, 3.0]), rtol=1e-5
    )
    # Gradients of many sizes, one L⁰: steps along multiples of one direction.
    starts = [x * s for s in (0.1, 1.0, 10.0)]
    many = rows(*(dm.measure_smoothness(grad, layers, x, x + d) for x in starts))
    (fit,) = dm.fit_smoothness(many, layers, x)
    assert fit.l0 == pytest.approx(float(expected), rel=1e-4)
    assert fit.l1 * fit.gradient < 1e-4 * fit.l0


def scalar_fit(f, xs, share=1e-3):
    """The fit of a function of one number from short steps at `xs`, in float64."""
    with jax.enable_x64(True):
        layers = one_norm(dm.norms.MaxEntry())

        @jax.jit
        @jax.vmap
        def points(x):
            return dm.measure_smoothness(
                jax.grad(f), layers, x, 0.9 * x, shares=(share,)
            )

        xs = jnp.asarray(xs)
        (fit,) = dm.fit_smoothness(points(xs), layers, xs[0])
    return fit


def test_an_exponential_has_l1_alone():
    fit = scalar_fit(lambda x: jnp.exp(3.0 * x), np.linspace(0.1, 2.0, 20))
    assert fit.l0 < 2e-3
    assert fit.l1 == pytest.approx(3.0, rel=1e-3)
    assert fit.relative_error < 1e-6
    assert fit.verdict == "curvature"
    # So Theorem 1's radius is 1/L¹, whatever the gradient.
    assert fit.radius == pytest.approx(1 / 3.0, rel=1e-3)


def test_cosh_has_both():
    """f″ = cosh x = √(1 + f′²) ≤ 1 + |f′|, from L⁰ = 1 at 0 to L¹ = 1 far away."""
    near = scalar_fit(jnp.cosh, np.linspace(1e-3, 0.01, 20))
    assert near.l0 == pytest.approx(1.0, rel=1e-3)
    far = scalar_fit(jnp.cosh, np.linspace(6.0, 9.0, 20))
    assert far.l1 == pytest.approx(1.0, rel=2e-3)
    xs = np.linspace(0.01, 4.0, 400)
    fit = scalar_fit(jnp.cosh, xs)
    assert fit.l0 + fit.l1 * np.sinh(xs).max() <= 1 + np.sinh(xs).max()
    assert 0 < fit.l0 < 1.05
    assert fit.l1 == pytest.approx(1.0, abs=0.05)


def test_a_fourth_power_is_fitted_by_its_best_line():
    """For f = ‖x‖⁴ along x, f′ = 4r³ and f″ = 12r² = 12(f′/4)^⅔: no line is exact."""
    xs = np.linspace(0.01, 2.0, 200)
    fit = scalar_fit(lambda x: x**4, xs)
    x, y = 4 * xs**3, 12 * xs**2
    best = fit_line(x, y)
    assert (fit.l0, fit.l1) == pytest.approx(best, rel=2e-3)
    for l0, l1 in itertools.product(np.linspace(0, 10, 41), np.linspace(0, 5, 41)):
        assert loss(*best, x, y) <= loss(l0, l1, x, y) + 1e-9


# --------------------------------------------------- against NumPy, along a run


def network(x, params):
    layer = params["in"]
    return jnp.tanh(x @ layer["kernel"] + layer["bias"][None]) @ params["out"]


def small_problem():
    """A net, its layers, 21 batches, all in float64."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    params = {"in": {"kernel": draw(4, 6), "bias": draw(6)}, "out": draw(6, 3)}
    layers = dm.layers_by_path(
        None,
        [
            ("kernel", EXACT, 1.0),
            ("bias", dm.norms.RMS(), 1.0),
            ("out", dm.norms.scion_sign(), 1.0),
        ],
    )
    batches = [(draw(8, 4), draw(8, 3)) for _ in range(21)]

    def grad(params, x, y):
        return jax.grad(lambda p: jnp.mean((network(x, p) - y) ** 2))(params)

    return params, layers, batches, jax.jit(grad)


def oracle(x, gx, y, gy):
    """(change, step, gradient) of bias, kernel and out, in NumPy's own norms."""
    flat = [[np.asarray(leaf) for leaf in jax.tree.leaves(t)] for t in (x, gx, y, gy)]
    nuclear = lambda m: np.linalg.norm(m, "nuc")  # noqa: E731
    norms = (
        (
            lambda v: np.sqrt(np.mean(v**2)),
            lambda g: np.linalg.norm(g) * np.sqrt(g.size),
        ),
        (lambda m: np.linalg.norm(m, 2), nuclear),
        (lambda m: len(m) * np.abs(m).max(), lambda g: np.abs(g).sum() / len(g)),
    )
    return np.array(
        [
            (dual(gb - ga), norm(b - a), dual(gb))
            for (norm, dual), a, ga, b, gb in zip(norms, *flat, strict=True)
        ]
    ).T


@pytest.mark.parametrize("same_batch", [False, True])
def test_the_record_of_20_steps_is_numpys(same_batch):
    with jax.enable_x64(True):
        params, layers, batches, grad = small_problem()
        tx = optax.chain(
            dm.track_smoothness(layers, capacity=32), dm.gluon(0.05, layers, 0.5)
        )
        state, expected, measured, last = tx.init(params), [], [], None

        @jax.jit
        def step(g, state, params, replayed):
            updates, state = tx.update(g, state, params, replayed_gradient=replayed)
            return optax.apply_updates(params, updates), state

        for batch in batches:
            g, replayed = grad(params, *batch), None
            if last is not None:
                x, gx, old = last
                replayed = grad(params, *old) if same_batch else None
                expected.append(oracle(x, gx, params, replayed or g))
                measured.append(dm.measure_smoothness(grad, layers, x, params, *old))
            last = (params, g, batch)
            params, state = step(g, state, params, replayed)
        history = state[0].history
        found = np.stack(history.points, 1)[:20]
        assert history.num_points == 20
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, np.array(expected), rtol=1e-9)
        assert not any(np.any(kept[20:]) for kept in history.points)
        if same_batch:  # the function measures what the transformation does
            again = np.stack(rows(*measured), 1)
            np.testing.assert_allclose(found, again, rtol=1e-9)
        fits = dm.fit_smoothness(history.points, layers, params)
    assert [fit.name for fit in fits] == ["in/bias", "in/kernel", "out"]
    for i, fit in enumerate(fits):
        change, t, g = found[:, :, i].T
        best = fit_line(g, change / t)
        assert (fit.l0, fit.l1) == best
        assert fit.num_points == 20
        assert fit.honesty == pytest.approx(np.median(change / g), rel=1e-12)
        error = (change / t - best[0] - best[1] * g) / (change / t)
        assert fit.relative_error == pytest.approx(np.mean(error**2), rel=1e-9)


def test_leaves_of_several_matrices_have_a_column_for_each():
    layers = dm.layers_by_path(
        ["heads", "stack"],
        [("heads", EXACT, 1.0, dm.View((0,), (2,))), ("", dm.norms.Frobenius(), 1.0)],
        stacked="stack",
    )
    rng = np.random.default_rng(0)
    draw = lambda s: jnp.asarray(rng.normal(size=s), jnp.float32)  # noqa: E731
    x = {"heads": draw((4, 2, 3)), "stack": {"bias": draw((3, 5))}}
    y = jax.tree.map(lambda a: a + draw(a.shape), x)
    points = dm.measure_smoothness(lambda p: jax.tree.map(jnp.sin, p), layers, x, y)
    gap = np.asarray(y["heads"] - x["heads"])
    expected = [np.linalg.norm(gap[:, h], 2) for h in range(2)]
    expected += list(np.linalg.norm(y["stack"]["bias"] - x["stack"]["bias"], axis=1))
    np.testing.assert_allclose(points.step[0], expected, rtol=1e-5)
    fits = dm.fit_smoothness(points, layers, x)
    assert [fit.name for fit in fits] == [
        *("heads[0]", "heads[1]"),
        *(f"stack/bias[{j}]" for j in range(3)),
    ]
    found = dm.estimated_layers(layers, fits, max_honesty=math.inf)(x)
    assert found["heads"].radius.l1 == max(fit.l1 for fit in fits[:2])
    assert found["stack"]["bias"].start == 1


# ------------------------------------------------------------------- the fits


def clouds():
    rng = np.random.default_rng(2)
    for l0, l1, noise in itertools.product((0.0, 0.3, 20.0), (0.0, 2.0), (0.1, 1.0)):
        x = rng.gamma(2.0, 3.0, 99)
        yield x, np.abs(l0 + l1 * x + noise * rng.normal(size=99)) + 1e-3
    x = rng.gamma(2.0, 3.0, 50)
    yield x, np.maximum(3 * x - 10, 0.1)  # wants L⁰ < 0
    yield x, 30 / (1 + x)  # wants L¹ < 0
    yield 1e-12 * x, 1e9 * (1 + x)


@pytest.mark.parametrize("asymmetry", [0.0, 5.0, 100.0])
def test_no_line_of_scipys_is_better(asymmetry):
    for x, y in clouds():
        ux, uy = x.max(), y.max()  # L-BFGS-B wants numbers near 1
        objective = functools.partial(loss, asymmetry=asymmetry)
        their = scipy.optimize.minimize(
            lambda v: objective(*v, x / ux, y / uy),  # noqa: B023
            (1.0, 1.0),
            method="L-BFGS-B",
            bounds=[(0, None)] * 2,
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        l0, l1 = fit_line(x, y, asymmetry)
        assert min(l0, l1) >= 0
        ours = objective(l0 / uy, l1 * ux / uy, x / ux, y / uy)
        assert ours <= their.fun * (1 + 1e-9)
        np.testing.assert_allclose((l0 / uy, l1 * ux / uy), their.x, atol=1e-4)


def test_points_of_one_gradient_norm_leave_l0_at_zero():
    assert fit_line(np.full(9, 2.0), np.full(9, 3.0)) == pytest.approx((0.0, 1.5))
    assert fit_line(np.zeros(3), np.full(3, 4.0)) == pytest.approx((4.0, 0.0))
    assert fit_line(np.ones(3), np.zeros(3)) == (0.0, 0.0)
    assert fit_line(np.ones(0), np.ones(0)) == (0.0, 0.0)


@pytest.mark.parametrize("unit_x", [1e-25, 1.0, 1e12])
def test_the_streaming_fit_follows_the_exact_one(unit_x):
    """4000 points in float32, in any units: 2 % of L⁰ + L¹x where points are."""
    rng = np.random.default_rng(3)
    x = rng.gamma(2.0, 3.0, (4000, 3))
    y = np.array([0.0, 2.0, 30.0]) + np.array([1.0, 0.5, 0.0]) * x
    y = y * rng.uniform(0.5, 1.5, y.shape)
    xs, ys = (jnp.asarray(v, jnp.float32) for v in (x * unit_x, y))

    @jax.jit
    def stream(xs, ys):
        def body(line, point):
            return refine(line, *point, point[0] > 0), None

        return jax.lax.scan(body, no_line(jnp.zeros(3)), (xs, ys))[0]

    line = stream(xs, ys)
    for i in range(3):
        l0, l1 = fit_line(x[:, i], y[:, i])
        for at in (1.0, 6.0, 15.0):
            ours = float(line.l0[i]) + float(line.l1[i]) * unit_x * at
            assert ours == pytest.approx(l0 + l1 * at, rel=0.02)


def test_the_buffer_thins_itself_and_spans_the_run():
    layers = one_norm(dm.norms.Frobenius())
    history = smoothness.no_history(layers, jnp.zeros(3), capacity=4)
    for k in range(1, 19):
        row = smoothness.SmoothnessPoints(*(jnp.full(1, float(k)) for _ in range(3)))
        history = smoothness.remember(history, row)
        kept = [int(v) for v in history.points.step[:, 0] if v > 0]
        stride = int(history.stride)
        assert kept == list(range(1, k + 1, stride))
        assert len(kept) <= 4
    assert (stride, history.num_points) == (8, 18)


# ------------------------------------------------------------ what an echo looks like


def noise_run(same_batch, t, num_steps=120):
    """Gluon's steps of length t on a quadratic whose gradient drowns in noise.

    The noise falls to an eighth during the run, as the gradients of a training do.
    """
    layers, rng = one_norm(dm.norms.scion_spectral(EXACT)), np.random.default_rng(4)
    tx = optax.chain(dm.track_smoothness(layers, 128), dm.gluon(t, layers, 0.9))
    with jax.enable_x64(True):
        levels = 8.0 ** -np.linspace(0, 1, num_steps)
        noises = jnp.asarray(
            levels[:, None, None] * rng.normal(size=(num_steps, 12, 12))
        )
        grad = lambda x, noise: 1e-3 * (x - 1) + noise  # noqa: E731

        def body(carry, noise):
            x, last, state = carry
            replayed = grad(x, last) if same_batch else None
            g = grad(x, noise)
            updates, state = tx.update(g, state, x, replayed_gradient=replayed)
            return (x + updates, noise, state), None

        x = jnp.zeros((12, 12))
        start = (x, x, tx.init(x))
        (x, _, state), _ = jax.jit(lambda: jax.lax.scan(body, start, noises))()
        (fit,) = dm.fit_smoothness(state[0].history.points, layers, x)
    return fit, layers, x


@pytest.mark.parametrize("t", [0.02, 1.08])
def test_consecutive_batches_give_back_the_step_and_one_batch_does_not(t):
    """The published NanoGPT figures: h ≈ √2, L⁰ ≈ 0, 1/L¹ ≈ 0.71·t at any t."""
    echo, layers, x = noise_run(same_batch=False, t=t)
    assert echo.step == pytest.approx(t, rel=1e-3)
    assert echo.honesty == pytest.approx(math.sqrt(2), rel=0.02)
    assert 1 / echo.l1 == pytest.approx(0.71 * t, rel=0.05)
    assert echo.radius == pytest.approx(0.71 * t, rel=0.05)
    assert echo.relative_error < 0.01  # a perfect fit, of nothing
    assert echo.verdict == "echo of the step"
    with pytest.raises(ValueError, match=r"must have h ≤ 1.0 to be used, got 1\.4"):
        dm.estimated_layers(layers, [echo])
    loose = dm.estimated_layers(layers, [echo], "constant", math.inf)(x)
    assert loose.radius == echo.radius

    true, _, _ = noise_run(same_batch=True, t=t)
    # f's own constant along the step: ‖10⁻³·D‖⋆/‖D‖ ≤ 10⁻³·12 for 12 × 12.
    assert true.l0 + true.l1 * true.gradient == pytest.approx(0.012, rel=0.05)
    assert true.honesty < 0.01 * echo.honesty
    assert true.radius > 50 * t
    assert true.verdict != "echo of the step"


# ------------------------------------------------------------- radii and the report


def test_gluon_runs_on_the_estimated_radii():
    """Theorem 1 on a quadratic in its own norm: t = ‖g‖⋆/L⁰, a step to the minimum."""
    layers = one_norm(dm.norms.Frobenius())
    target = jnp.array([[3.0, 4.0]])
    grad = lambda x: 2.0 * (x - target)  # noqa: E731
    x = jnp.zeros((1, 2))
    points = rows(
        dm.measure_smoothness(grad, layers, x, x + 0.1),
        dm.measure_smoothness(grad, layers, x + 1.0, x + 1.1),
    )
    fits = dm.fit_smoothness(points, layers, x)
    estimated = dm.estimated_layers(layers, fits)
    assert estimated(x).radius.l0 == pytest.approx(2.0, rel=1e-4)
    tx = dm.gluon(1.0, estimated, 0.0)
    updates, _ = tx.update(grad(x), tx.init(x), x)
    np.testing.assert_allclose(x + updates, target, rtol=1e-4)


def test_leaves_without_a_norm_are_left_out_and_kept():
    rules = [("skip", None, 1.0), ("", dm.norms.Frobenius(), 1.0)]
    layers, params = (
        dm.layers_by_path(None, rules),
        {"skip": jnp.ones(2), "w": jnp.ones(2)},
    )
    double = functools.partial(jax.tree.map, lambda x: 2 * x)
    points = dm.measure_smoothness(
        double, layers, params, jax.tree.map(lambda x: x * 1.01, params)
    )
    assert points.step.shape == (1, 1)
    fits = dm.fit_smoothness(points, layers, params)
    assert dm.estimated_layers(layers, fits)(params)["skip"] == layers(params)["skip"]
    with pytest.raises(ValueError, match="'w'"):
        dm.estimated_layers(layers, [])(params)


def test_frozen_matrices_have_no_estimate(capsys):
    layers, params = (
        dm.layers_by_path(None),
        {"a": jnp.ones((2, 2)), "c": jnp.ones((2, 2))},
    )
    moved = {**params, "c": jnp.full((2, 2), 1.5)}
    tx = dm.track_smoothness(layers)
    state = tx.init(params)
    for x in (params, moved):
        _, state = tx.update(jax.tree.map(jnp.square, x), state, x)
    fits = dm.fit_smoothness(state.history.points, layers, params)
    assert [fit.verdict for fit in fits] == ["never moved", "coarse"]
    assert state.history.line.weight.tolist() == [0.0, 6.0]
    probes = dm.measure_smoothness(
        lambda x: jax.tree.map(jnp.square, x), layers, params, moved, shares=(1, 0.1)
    )
    text = dm.report_smoothness(fits, probes, (1, 0.1))
    assert capsys.readouterr().out == text + "\n"
    assert "L̂ at 0.1·t" in text
    assert "never moved" in text
    with pytest.raises(ValueError, match="`probes` must be points of 1 shares"):
        dm.report_smoothness(fits, probes, (1,))
    with pytest.raises(ValueError, match="'a' must have h"):
        dm.estimated_layers(layers, fits)


# ------------------------------------------------------------- a well-behaved chain


def test_the_transformation_keeps_optax_contract(key):
    layers = one_norm(dm.norms.Frobenius())
    params = {"a": jax.random.normal(key, (3, 2)), "b": jnp.ones(2, jnp.bfloat16)}
    tx, traces = dm.track_smoothness(layers, capacity=4, every=2), []

    @jax.jit
    def step(state, params):
        traces.append(0)
        updates, state = tx.update(params, state, params, value=1.0)
        moved = jax.tree.map(
            lambda p, u: p - jnp.asarray(0.1, p.dtype) * u, params, updates
        )
        return updates, state, moved

    states, xs = [tx.init(params)], [params]
    for _ in range(7):
        updates, state, moved = step(states[-1], xs[-1])
        _, same = tx.update(xs[-1], states[-1], xs[-1])
        jax.tree.map(np.testing.assert_array_equal, updates, xs[-1])
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5), state, same
        )
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, states[0])
        assert not {id(x) for x in jax.tree.leaves(same.params)} & {
            id(x) for x in jax.tree.leaves(xs[-1])
        }
        states.append(state)
        xs.append(moved)
    assert len(traces) == 1
    assert states[-1].count == 7
    assert states[-1].history.num_points == 3  # after steps 2, 4 and 6

    def body(carry, _):
        _, state, moved = step(*carry)
        return (state, moved), None

    (scanned, _), _ = jax.lax.scan(body, (states[0], xs[0]), length=7)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), scanned, states[-1]
    )
    twins = jax.tree.map(
        lambda *x: jnp.stack(x),
        (states[1], xs[1]),
        (states[2], xs[2]),
    )
    both, _ = jax.vmap(lambda s, x: step(s, x)[1:])(*twins)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5),
        jax.tree.map(lambda x: x[1], both),
        states[3],
    )
    mapped = optax.tree.map_params(tx, jnp.zeros_like, states[-1])
    assert not any(np.any(x) for x in jax.tree.leaves((mapped.params, mapped.gradient)))
    jax.tree.map(np.testing.assert_array_equal, mapped.history, states[-1].history)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: dm.track_smoothness(f, every=0), "`every` must be"),
        (lambda f: dm.track_smoothness(f, asymmetry=-1.0), "`asymmetry` must be"),
        (lambda f: dm.track_smoothness(f, 3).init(jnp.ones(2)), "must be even"),
        (lambda f: dm.measure_smoothness(abs, f, 1, 2, shares=()), "must hold"),
        (lambda f: dm.measure_smoothness(abs, f, 1, 2, shares=(0.0,)), "`shares`"),
        (lambda f: dm.measure_smoothness(None, f, 1, 2), "`grad_fn` must be"),
        (lambda f: dm.estimated_layers(f, [], "largest"), "`rule` must be"),
        (lambda f: fit_line(np.ones(2), np.array([1.0, np.nan])), "`y` must be finite"),
        (lambda f: fit_line(-np.ones(2), np.ones(2)), "`x` must be finite"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(one_norm(dm.norms.RMS()))


def test_bad_points_are_refused():
    layers, x = one_norm(dm.norms.RMS()), {"w": jnp.ones(2)}
    points = smoothness.SmoothnessPoints(*(jnp.ones((3, 1)) for _ in range(3)))
    with pytest.raises(ValueError, match="finite, got others for 'w'"):
        dm.fit_smoothness(points._replace(change=jnp.full((3, 1), jnp.nan)), layers, x)
    with pytest.raises(ValueError, match="a column for each of 2 matrices, got 1"):
        dm.fit_smoothness(points, layers, {**x, "v": jnp.ones(3)})
    tx = dm.track_smoothness(layers)
    with pytest.raises(ValueError, match="`params` must be given"):
        tx.update(x, tx.init(x))
