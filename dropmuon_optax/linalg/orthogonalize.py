"""The polar factor UVᵀ of a matrix X = UΣVᵀ, by Newton–Schulz iterations or exactly.

All functions take one unbatched matrix (stacks come by `jax.vmap`), accept any finite
scale, and return the input's dtype.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dropmuon_optax import checks
from dropmuon_optax.linalg.coefficients import KELLER_JORDAN, Coefficients, Triple
from dropmuon_optax.linalg.mapping import one_by_one
from dropmuon_optax.linalg.preconditioning import PRECONDITIONINGS, start_scale
from dropmuon_optax.linalg.scaling import l2_direction, unit_scale, wide_dtype

# More steps than this are a loop, so that the program stays small. Written out, five
# steps of a stack compile in 0.5 to 0.8 of the time of a loop over them, and run no
# slower (XLA on CPU, jax 0.10 and 0.12).
MAX_UNROLLED = 10

# Compiled once for each shape, also where `update` itself is not: an eager iteration
# would dispatch every product by itself.
STATIC = ("num_steps", "coefficients", "dtype", "precision", "preconditioning")


@functools.partial(jax.jit, static_argnames=STATIC)
def newton_schulz(
    x: Float[Array, "m n"],
    num_steps: int = 5,
    coefficients: Coefficients = KELLER_JORDAN,
    *,
    dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
    preconditioning: str = "frobenius",
) -> Float[Array, "m n"]:
    """Approximates the polar factor of `x` by Newton–Schulz iterations.

    With X₀ = x/‖x‖, each step is Xₖ₊₁ = aXₖ + (bA + cA²)Xₖ where A = XₖXₖᵀ (of the
    transpose if x is tall, so that A is as small as it can be). Singular vectors stay,
    each singular value σ goes to aσ + bσ³ + cσ⁵.

    Args:
      x: a matrix of shape (m, n), any unit: its scale has no effect.
      num_steps: number of steps, at least 1.
      coefficients: the triples (a, b, c); the first `num_steps` of them are used.
      dtype: dtype of the matrices that are multiplied. None is float32 for narrower
        inputs and the input's own otherwise. Sums, coefficients and the normalization
        are never narrower than float32.
      precision: precision of the matrix products, as in `jax.lax.dot_general`. None is
        JAX's default, which on TPU multiplies float32 in bfloat16 passes.
      preconditioning: what `x` is divided by at first: `"frobenius"` is ‖x‖_F,
        `"schatten"` the smaller ‖x‖_S4 = (Σσ⁴)^¼, from which four steps of
        `YOU_JIACHENG` come closer to the polar factor than five of `KELLER_JORDAN` from
        the Frobenius norm.

    Returns:
      A matrix of shape (m, n) in the dtype of `x`. Zero gives zero, and anything
      non-finite gives NaN throughout.

    Raises:
      ValueError: if `x` is no matrix, `coefficients` has too few steps or
        `preconditioning` is none.

    Examples:
      >>> from dropmuon_optax.linalg import POLAR_EXPRESS
      >>> x = jnp.array([[3.0, 0.0], [0.0, 1e-2]])
      >>> newton_schulz(x, 8, POLAR_EXPRESS).round(3)
      Array([[1., 0.],
             [0., 1.]], dtype=float32)

    References:
      Jordan et al., Muon, github.com/KellerJordan/Muon. Björck and Bowie, 1971.
    """
    checks.is_matrix("x", x)
    checks.one_of("preconditioning", preconditioning, PRECONDITIONINGS)
    unit = unit_scale(x)[0]
    y = plain_form(unit, num_steps, coefficients, dtype, precision, preconditioning)
    return y.astype(x.dtype)


def plain_form(
    unit: Float[Array, "m n"],
    num_steps: int,
    coefficients: Coefficients,
    dtype: DTypeLike | None,
    precision: jax.lax.PrecisionLike,
    preconditioning: str,
) -> Float[Array, "m n"]:
    """`newton_schulz` of a matrix with entries of at most 1, in the compute dtype."""
    narrow = compute_dtype(unit, dtype)
    product = multiply(narrow, precision)
    first, *rest = coefficients.first(num_steps)

    def polynomial(y: Array, gram: Array, abc: Triple, scale: Any = 1.0) -> Array:
        """The step of scale·y, whose Gram matrix is given, without a pass over y."""
        a, b, c = abc
        small = b * gram + c * product(gram, gram)
        if gram.dtype == narrow:
            linear = a * jnp.eye(len(gram), dtype=narrow)
            return product(scale * (linear + small), y)
        wide = y.astype(gram.dtype)  # linear part and sum keep their digits
        return (scale * (a * wide + product(small, y))).astype(narrow)

    def step(y: Array, abc: Triple) -> Array:
        return polynomial(y, product(y, y.T), abc)

    tall = unit.shape[0] > unit.shape[1]
    y = (unit.T if tall else unit).astype(narrow)
    gram = product(y, y.T)
    s = start_scale(gram, preconditioning, coefficients.safety)
    y = repeat(step, polynomial(y, s * s * gram, first, s), rest)
    return y.T if tall else y


def plain_flops(shape: tuple[int, int], num_steps: int) -> int:
    """FLOPs of the products of `newton_schulz`, two for a multiplication and a sum.

    >>> plain_flops((4, 2), 5)  # 5·(2p²q + p³) multiplications for sides p ≤ q
    400
    """
    p, q = sorted(shape)
    return 2 * num_steps * (2 * p * p * q + p**3)


@jax.jit
def polar_factor(x: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """The exact polar factor UVᵀ, by singular value decomposition.

    Singular values below max(m, n)·ε·σ_max count as zero, so that a matrix of rank r
    gives the partial isometry of rank r, and zero gives zero. It is for tests, small
    matrices and reference runs: on most accelerators it is orders of magnitude slower
    than `newton_schulz`. Stacks are decomposed one after the other, because batched
    LAPACK calls can starve the thread pool that they run on.

    Args:
      x: a matrix of shape (m, n), any unit.

    Returns:
      A matrix of shape (m, n) in the dtype of `x`, its singular values 0 or 1.

    Raises:
      ValueError: if `x` is no matrix.

    Examples:
      >>> polar_factor(jnp.array([[0.0, 2.0], [0.0, 0.0]])).round(3)
      Array([[0., 1.],
             [0., 0.]], dtype=float32)
    """
    checks.is_matrix("x", x)
    return _polar_factor(x) if x.size else x


@one_by_one
def _polar_factor(x: Array) -> Array:
    y = l2_direction(x)
    finite = jnp.isfinite(y).all()
    u, s, vt = jnp.linalg.svd(jnp.where(finite, y, 0.0), full_matrices=False)
    rank = s > max(x.shape) * jnp.finfo(y.dtype).eps * s[0]
    polar = jnp.matmul(jnp.where(rank, u, 0.0), vt, precision="highest")
    return jnp.where(finite, polar, jnp.nan).astype(x.dtype)


def compute_dtype(x: Array, dtype: DTypeLike | None) -> jnp.dtype:
    """The dtype of the factors of a product."""
    return jnp.dtype(wide_dtype(x) if dtype is None else dtype)


def sum_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of sums of products of `dtype`: float32 or wider."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def multiply(
    dtype: DTypeLike, precision: jax.lax.PrecisionLike
) -> Callable[[Array, Array], Array]:
    """The product of two matrices rounded to `dtype`, summed in float32 or wider."""
    sums = sum_dtype(dtype)

    def product(a: Array, b: Array) -> Array:
        return jnp.matmul(
            a.astype(dtype),
            b.astype(dtype),
            precision=precision,
            preferred_element_type=sums,
        )

    return product


def repeat(
    step: Callable[[Array, Any], Array], y: Array, items: Sequence[Any]
) -> Array:
    """Applies y ← step(y, item) for each item; written out, unless they are many."""
    if len(items) <= MAX_UNROLLED:
        return functools.reduce(step, items, y)
    for item, run in itertools.groupby(items):

        def again(_: Any, y: Array, item: Any = item) -> Array:
            return step(y, item)

        y = jax.lax.fori_loop(0, len(list(run)), again, y)
    return y
