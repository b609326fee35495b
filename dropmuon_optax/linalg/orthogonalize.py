"""The polar factor UVᵀ of a matrix X = UΣVᵀ, by matrix products or exactly.

All three functions take one unbatched matrix (stacks come by `jax.vmap`), accept any
finite scale, and return the input's dtype.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dropmuon_optax import checks
from dropmuon_optax.linalg.coefficients import KELLER_JORDAN, Coefficients
from dropmuon_optax.linalg.mapping import one_by_one
from dropmuon_optax.linalg.scaling import l2_direction, wide_dtype

# Iterations after which the Gram form starts again from the matrix itself. The Gram
# matrix squares the condition number, so what rounding has done to its small
# eigenvalues must not be carried further than they have grown by then (tridao.me,
# "Gram Newton-Schulz", 2026, restarts there too).
GRAM_RESTARTS = (2,)

# Compiled once for each shape, also where `update` itself is not: an eager loop would
# trace and compile its scan at every step.
_STATIC = ("num_steps", "coefficients", "dtype", "precision")


@functools.partial(jax.jit, static_argnames=_STATIC)
def newton_schulz(
    x: Float[Array, "m n"],
    num_steps: int = 5,
    coefficients: Coefficients = KELLER_JORDAN,
    *,
    dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "m n"]:
    """Approximates the polar factor of `x` by Newton–Schulz iterations.

    With X₀ = x/‖x‖_F, each step is Xₖ₊₁ = aXₖ + (bA + cA²)Xₖ where A = XₖXₖᵀ (or the
    same from the right if x is tall, so that A is as small as it can be). Singular
    vectors stay, each singular value σ goes to aσ + bσ³ + cσ⁵.

    Args:
      x: a matrix of shape (m, n), any unit: its scale has no effect.
      num_steps: number of steps, at least 1.
      coefficients: the triples (a, b, c); the first `num_steps` of them are used.
      dtype: dtype of the matrix products. None is float32 for narrower inputs and the
        input's own otherwise. The normalization is never narrower than float32.
      precision: precision of the matrix products, as in `jax.lax.dot_general`. None is
        JAX's default, which on TPU multiplies float32 in bfloat16 passes.

    Returns:
      A matrix of shape (m, n) in the dtype of `x`. Zero gives zero, and anything
      non-finite gives NaN throughout.

    Raises:
      ValueError: if `x` is no matrix or `coefficients` has too few steps.

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
    steps = jnp.array(coefficients.first(num_steps), wide_dtype(x))
    tall = x.shape[0] > x.shape[1]
    product = _product(precision)

    def step(y: Array, abc: Array) -> tuple[Array, None]:
        a, b, c = abc
        gram = product(y.T, y) if tall else product(y, y.T)
        polynomial = b * gram + c * product(gram, gram)
        correction = product(y, polynomial) if tall else product(polynomial, y)
        return a * y + correction, None

    start = _start(x, coefficients).astype(_compute(x, dtype))
    y, _ = jax.lax.scan(step, start, steps.astype(start.dtype))
    return y.astype(x.dtype)


@functools.partial(jax.jit, static_argnames=_STATIC)
def gram_newton_schulz(
    x: Float[Array, "m n"],
    num_steps: int = 5,
    coefficients: Coefficients = KELLER_JORDAN,
    *,
    dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "m n"]:
    """The same polynomial of `x` as `newton_schulz`, from its small Gram matrix.

    For a wide x let R = XXᵀ. Every iterate is QₖX with Qₖ a polynomial in R, so it is
    enough to carry Q and R: with Z = aI + bR + cR², Q becomes ZQ and R becomes ZRZ.
    The long side is touched twice a restart instead of twice a step, which pays when
    one side is more than about twice the other. It starts again from the matrix itself
    after two steps, and Q and R stay in float32 whatever `dtype` says for the long
    products: without either, bfloat16 loses the small singular values.

    Args:
      x: a matrix of shape (m, n), any unit: its scale has no effect.
      num_steps: number of steps, at least 1.
      coefficients: the triples (a, b, c); the first `num_steps` of them are used.
      dtype: dtype of the products with the long side; see `newton_schulz`.
      precision: precision of the matrix products; see `newton_schulz`.

    Returns:
      A matrix of shape (m, n) in the dtype of `x`.

    Raises:
      ValueError: if `x` is no matrix or `coefficients` has too few steps.

    Examples:
      >>> from dropmuon_optax.linalg import POLAR_EXPRESS
      >>> x = jnp.array([[3.0, 0.0, 0.0, 4.0]])
      >>> gram_newton_schulz(x, 8, POLAR_EXPRESS).round(3)
      Array([[0.6, 0. , 0. , 0.8]], dtype=float32)

    References:
      Dao-AILab, gram-newton-schulz, 2026 (the form and its restart).
    """
    checks.is_matrix("x", x)
    steps = coefficients.first(num_steps)
    wide = x.T if x.shape[0] > x.shape[1] else x
    product = _product(precision)
    narrow = _compute(x, dtype)

    def step(
        carry: tuple[Array, Array], abc: Array
    ) -> tuple[tuple[Array, Array], None]:
        q, r = carry
        a, b, c = abc
        z = a * jnp.eye(r.shape[0], dtype=r.dtype) + b * r + c * product(r, r)
        return (product(z, q), product(product(z, r), z)), None

    y = _start(wide, coefficients)
    for part in _split(steps, GRAM_RESTARTS):
        low = y.astype(narrow)
        gram = product(low, low.T).astype(y.dtype)
        # A stack of identities under `vmap`, on the mesh of `gram`: see `unit_scale`.
        eye = jnp.eye(gram.shape[0], dtype=gram.dtype) + 0 * gram
        (q, _), _ = jax.lax.scan(step, (eye, gram), jnp.array(part, gram.dtype))
        y = product(q.astype(narrow), low).astype(y.dtype)
    return (y.T if wide is not x else y).astype(x.dtype)


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


def _start(x: Array, coefficients: Coefficients) -> Array:
    """x/‖x‖_F, with the safety margin of the coefficients, in float32 or wider."""
    return l2_direction(x) / coefficients.safety


def _compute(x: Array, dtype: DTypeLike | None) -> DTypeLike:
    return wide_dtype(x) if dtype is None else dtype


def _product(precision: jax.lax.PrecisionLike):
    return lambda a, b: jnp.matmul(a, b, precision=precision)


def _split(steps: tuple, restarts: tuple[int, ...]) -> list[tuple]:
    """`steps` cut before the positions in `restarts`, without empty parts."""
    cuts = [0, *(cut for cut in restarts if cut < len(steps)), len(steps)]
    return [steps[i:j] for i, j in itertools.pairwise(cuts)]
