"""Newton–Schulz, its Gram form and the exact polar factor, against NumPy's SVD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax import counters, linalg
from dropmuon_optax.counters import flops
from dropmuon_optax.linalg.preconditioning import PRECONDITIONINGS

SHAPES = [(8, 8), (24, 16), (16, 24), (40, 4), (1, 5), (5, 1)]
FORMS = [linalg.newton_schulz, linalg.gram_newton_schulz]
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def polynomial(x, num_steps, coefficients, preconditioning="frobenius"):
    """The composed polynomial on the singular values, by SVD in float64."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    power = {"frobenius": 2, "schatten": 4}[preconditioning]
    s = s / (np.linalg.norm(s, power) * coefficients.safety)
    for a, b, c in coefficients.first(num_steps):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


def polar(x):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    rank = s > max(x.shape) * np.finfo(np.float64).eps * s[0]
    return (u * rank) @ vt


@each_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "coefficients", [linalg.KELLER_JORDAN, linalg.CANS], ids=lambda c: c.name
)
def test_is_the_polynomial_of_the_singular_values(form, shape, coefficients):
    x = gaussian(shape)
    y = form(jnp.asarray(x, "float32"), 5, coefficients)
    assert y.dtype == "float32"
    # Five steps multiply float32's roundings by the composed polynomial's slope: about
    # 500 at 0 for Keller Jordan's, 49,000 at σ = 1 for CANS.
    atol = 2e-4 if coefficients is linalg.KELLER_JORDAN else 2e-2
    np.testing.assert_allclose(y, polynomial(x, 5, coefficients), atol=atol)
    with jax.enable_x64():
        y = form(jnp.asarray(x), 5, coefficients)
    assert y.dtype == "float64"
    np.testing.assert_allclose(y, polynomial(x, 5, coefficients), atol=1e-11)


@each_form
def test_converges_to_the_polar_factor(form):
    x = gaussian((12, 30))
    with jax.enable_x64():
        y = form(jnp.asarray(x), 12, linalg.POLAR_EXPRESS)
    np.testing.assert_allclose(y, polar(x), atol=1e-12)


@each_form
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e4, 1e30])
def test_scale_has_no_effect(form, scale):
    x = jnp.asarray(gaussian((6, 10)), "float32")
    # The scales are no powers of two, so each entry is rounded once more.
    np.testing.assert_allclose(
        form(x * jnp.float32(scale)), form(x), rtol=1e-3, atol=1e-4
    )


@each_form
def test_float16_matrices_whose_squares_overflow(form):
    x = jnp.asarray(gaussian((32, 32)) * 1e4, "float16")
    assert jnp.isinf(jnp.sqrt(jnp.sum(x * x)))  # their norm does, in float16
    expected = polynomial(np.asarray(x, np.float64), 5, linalg.KELLER_JORDAN)
    # The result is rounded to float16's 11 bits.
    np.testing.assert_allclose(form(x).astype("float32"), expected, atol=2e-3)


@each_form
def test_bfloat16_products_stay_in_the_certified_range(form):
    x = gaussian((64, 256), 3)
    y = form(jnp.asarray(x, "float32"), dtype="bfloat16")
    assert y.dtype == "float32"
    s = np.linalg.svd(np.asarray(y), compute_uv=False)
    # Keller Jordan's range is 0.68…1.2 from σ = 0.01 on; bfloat16 has 8 bits.
    assert s.min() > 0.65
    assert s.max() < 1.25


@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4])
def test_gram_form_keeps_small_singular_values_in_bfloat16(condition):
    """Measured, means over seeds: 0.02 to 0.04, as the plain form's in this dtype, and
    0.07 to 0.14 without the restart. Singular values of 1e-3 start at 3 roundings."""
    errors = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        u = np.linalg.qr(rng.standard_normal((16, 16)))[0]
        v = np.linalg.qr(rng.standard_normal((64, 16)))[0]
        x = (u * np.geomspace(1.0, 1 / condition, 16)) @ v.T
        y = linalg.gram_newton_schulz(jnp.asarray(x, "float32"), dtype="bfloat16")
        error = u.T @ (np.asarray(y) - polynomial(x, 5, linalg.KELLER_JORDAN)) @ v
        errors.append(np.abs(np.diag(error)).max())
    assert np.mean(errors) < 0.05


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_polar_factor_is_exact(shape):
    with jax.enable_x64():
        for x in (gaussian(shape), np.outer(gaussian(shape[0]), gaussian(shape[1], 1))):
            y = linalg.polar_factor(jnp.asarray(x))
            np.testing.assert_allclose(y, polar(x), atol=1e-13)


def test_stacks_are_decomposed_one_after_the_other():
    stack = jnp.asarray(gaussian((5, 6, 4)), "float32")
    program = jax.vmap(linalg.polar_factor)
    counts = counters.count_primitives(program, stack)
    assert counts["svd"] == 1  # inside a loop, on a single matrix
    jaxpr = str(jax.make_jaxpr(program)(stack))
    assert "f32[5,6,4] = svd" not in jaxpr
    loop = np.stack([linalg.polar_factor(x) for x in stack])
    np.testing.assert_array_equal(program(stack), loop)


@each_form
def test_many_steps_are_a_loop_and_the_same_polynomial(form):
    x = jnp.asarray(gaussian((4, 8)), "float32")
    few = counters.count_primitives(functools.partial(form, num_steps=40), x)
    many = counters.count_primitives(functools.partial(form, num_steps=79), x)
    assert few["scan"] + few["while"] > 0
    assert few == many  # both end in a part of one step
    y = form(x, 40, linalg.POLAR_EXPRESS)
    np.testing.assert_allclose(y, polar(np.asarray(x, float)), atol=1e-5)


def test_the_gram_form_touches_the_long_side_twice_a_restart():
    for x in (jnp.ones((512, 32)), jnp.ones((32, 512))):
        jaxpr = jax.make_jaxpr(linalg.gram_newton_schulz)(x)
        products = [
            [v.aval.shape for v in equation.invars]
            for equation in flops.equations(jaxpr.jaxpr)
            if equation.primitive.name == "dot_general"
        ]
        long = [shapes for shapes in products if any(512 in shape for shape in shapes)]
        assert len(long) == 4  # three steps, a restart, two steps
        assert len(products) == 4 + 14


KINDS = ("full rank", "rank 1", "rank 4", "one-hot")


def of_every_kind(dtype, num_seeds=3):
    """Matrices of each kind (kind, seed, 12, 40), and the same in float64."""
    hot = np.zeros((12, 40))
    hot[3, 5] = -2.0
    found = []
    for seed in range(num_seeds):
        full, left, right = (gaussian(s, seed) for s in ((12, 40), (12, 4), (4, 40)))
        found.append([full, left[:, :1] @ right[:1], left @ right, hot])
    x = jnp.asarray(np.stack(found, 1), dtype)
    return x, np.asarray(x.astype("float32"), np.float64)


def in_float32_coefficients(x, coefficients, num_steps, preconditioning):
    """PyTorch's loop: every matrix in the dtype of x, coefficients in float32."""
    y = x.astype("float32")
    squares = y * y if preconditioning == "frobenius" else (y @ y.mT) ** 2
    power = 1 / 2 if preconditioning == "frobenius" else 1 / 4
    norm = squares.sum((-2, -1), keepdims=True) ** power
    y = y / (norm * coefficients.safety)
    y = y.astype(x.dtype)
    for a, b, c in coefficients.first(num_steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return y


TABLES = [v for v in vars(linalg).values() if isinstance(v, linalg.Coefficients)]


@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("coefficients", TABLES, ids=lambda c: c.name)
def test_half_precision_is_as_exact_as_float32_coefficients_make_it(
    coefficients, dtype, preconditioning
):
    """Relative errors (Frobenius, root mean square over seeds) for 3 to 10 steps.

    Both forms' are at most 1.35 times the loop's, or some roundings. A one-hot matrix
    is a single number, which is nearly exact in the loop by chance: there it is two
    roundings times the polynomial's slope.
    """
    x, exact = of_every_kind(dtype)
    at_most = 10 if coefficients.repeats_last else len(coefficients.steps)
    for num_steps in range(3, min(at_most, 10) + 1):
        expected = np.stack(
            [
                [polynomial(e, num_steps, coefficients, preconditioning) for e in row]
                for row in exact
            ]
        )

        def error(y, expected=expected):
            assert y.dtype == dtype
            y = np.asarray(y.astype("float32"), np.float64)
            assert np.isfinite(y).all()
            square = lambda z: (z**2).sum((2, 3))  # noqa: E731
            return np.sqrt((square(y - expected) / square(expected)).mean(1))

        with jax.disable_jit():  # one compilation of each product is enough
            loop = error(
                in_float32_coefficients(x, coefficients, num_steps, preconditioning)
            )
            for form in FORMS:
                step = functools.partial(
                    form,
                    num_steps=num_steps,
                    coefficients=coefficients,
                    dtype=dtype,
                    preconditioning=preconditioning,
                )
                ours = error(jax.vmap(jax.vmap(step))(x))
                floor = np.full(len(KINDS), FLOOR[dtype])
                floor[-1] += rounded_twice(coefficients, num_steps, dtype)
                assert (ours <= np.maximum(1.35 * loop, floor)).all(), (
                    form.__name__,
                    num_steps,
                    dict(zip(KINDS, zip(ours, loop, strict=True), strict=True)),
                )


def rounded_twice(coefficients, num_steps, dtype):
    """What two roundings of a singular value of 1 do, relative to the result.

    0 where they lead out of the interval that the table was made for, and grow: then
    the loop's own error is the only measure.
    """
    eps = float(jnp.finfo(dtype).eps)
    sigma = np.array([1.0, 1 - 2 * eps, 1 + 2 * eps]) / coefficients.safety
    with np.errstate(over="ignore", invalid="ignore"):
        for a, b, c in coefficients.first(num_steps):
            sigma = a * sigma + b * sigma**3 + c * sigma**5
        found = np.abs(sigma / sigma[0] - 1).max()
    return found if found < 1 else 0.0


# Roundings times the steepest slope of a table at a singular value of 1.
FLOOR = {"float32": 6e-5, "bfloat16": 0.06, "float16": 0.008}


@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_cans_has_a_margin(dtype, preconditioning):
    """Undamped, its polynomial gives 3·10⁴ at σ = 1.0001 and 4·10⁵ at 1.002."""
    x, _ = of_every_kind(dtype)
    options = {"dtype": dtype, "preconditioning": preconditioning}
    for form in FORMS:
        step = functools.partial(form, coefficients=linalg.CANS, **options)
        y = jax.vmap(jax.vmap(step))(x)
        s = np.linalg.svd(np.asarray(y.astype("float32")), compute_uv=False)
        assert s.max() < 1.2  # 1.1134 in exact arithmetic


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("function", [*FORMS, linalg.polar_factor])
def test_what_is_no_matrix_is_refused(function):
    with pytest.raises(ValueError, match=r"`x` must be a matrix .* got shape \(3,\)"):
        function(jnp.zeros(3))


@each_form
def test_too_many_steps_are_refused(form):
    with pytest.raises(ValueError, match="`num_steps` must be at most 5"):
        form(jnp.ones((2, 2)), 6, linalg.CANS)
