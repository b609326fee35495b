"""Newton–Schulz on the small Gram matrix, for matrices of one long side."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dropmuon_optax import checks
from dropmuon_optax.linalg.coefficients import KELLER_JORDAN, Coefficients, Triple
from dropmuon_optax.linalg.orthogonalize import (
    STATIC,
    compute_dtype,
    multiply,
    repeat,
    sum_dtype,
)
from dropmuon_optax.linalg.preconditioning import PRECONDITIONINGS, start_scale
from dropmuon_optax.linalg.scaling import unit_scale

# A step multiplies an eigenvalue near 0 of the Gram matrix, and so what rounding has
# made of it (some 2⁻²⁴), by a². Before that has grown by more than this the iteration
# starts again from the matrix itself, whose Gram matrix has no negative eigenvalues.
MAX_GROWTH = 200.0


@functools.partial(jax.jit, static_argnames=STATIC)
def gram_newton_schulz(
    x: Float[Array, "m n"],
    num_steps: int = 5,
    coefficients: Coefficients = KELLER_JORDAN,
    *,
    dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
    preconditioning: str = "frobenius",
) -> Float[Array, "m n"]:
    """The same polynomial of `x` as `newton_schulz`, from its small Gram matrix.

    For a wide x let R = XXᵀ. Every iterate is QₖX with Qₖ a polynomial in R, so it is
    enough to carry Q and R: with Z = aI + bR + cR², Q becomes ZQ and R becomes ZRZ.
    The long side is touched twice a restart instead of twice a step, which pays when
    one side is more than about twice the other. It starts again from the matrix itself
    every two or three steps (`MAX_GROWTH`), and Q and R are multiplied in float32
    whatever `dtype` says for the long products: the Gram matrix squares the condition
    number, so without either the small singular values are lost.

    Args:
      x: a matrix of shape (m, n), any unit: its scale has no effect.
      num_steps: number of steps, at least 1.
      coefficients: the triples (a, b, c); the first `num_steps` of them are used.
      dtype: dtype of the products with the long side; see `newton_schulz`.
      precision: precision of the matrix products; see `newton_schulz`. None is JAX's
        default for the long products and the highest for the small ones.
      preconditioning: what `x` is divided by at first; see `newton_schulz`.

    Returns:
      A matrix of shape (m, n) in the dtype of `x`.

    Raises:
      ValueError: if `x` is no matrix, `coefficients` has too few steps or
        `preconditioning` is none.

    Examples:
      >>> from dropmuon_optax.linalg import POLAR_EXPRESS
      >>> x = jnp.array([[3.0, 0.0, 0.0, 4.0]])
      >>> gram_newton_schulz(x, 8, POLAR_EXPRESS).round(3)
      Array([[0.6, 0. , 0. , 0.8]], dtype=float32)

    References:
      Dao-AILab, gram-newton-schulz, 2026 (the form and its restart).
    """
    checks.is_matrix("x", x)
    checks.one_of("preconditioning", preconditioning, PRECONDITIONINGS)
    unit = unit_scale(x)[0]
    y = gram_form(unit, num_steps, coefficients, dtype, precision, preconditioning)
    return y.astype(x.dtype)


def gram_form(
    unit: Float[Array, "m n"],
    num_steps: int,
    coefficients: Coefficients,
    dtype: DTypeLike | None,
    precision: jax.lax.PrecisionLike,
    preconditioning: str,
) -> Float[Array, "m n"]:
    """`gram_newton_schulz` of a matrix with entries of at most 1, in `dtype`."""
    narrow = compute_dtype(unit, dtype)
    small = sum_dtype(narrow)
    long_product = multiply(narrow, precision)
    product = multiply(small, "highest" if precision is None else precision)
    first, *rest = parts(coefficients.first(num_steps))

    def polynomial(r: Array, abc: Triple) -> Array:
        a, b, c = abc
        return a * jnp.eye(len(r), dtype=small) + b * r + c * product(r, r)

    def several(r: Array, part: tuple[Triple, ...]) -> Array:
        q = z = polynomial(r, part[0])  # the product with Q = I is left out
        for abc in part[1:]:
            r = product(product(z, r), z)
            z = polynomial(r, abc)
            q = product(z, q)
        return q

    def restarted(y: Array, part: tuple[Triple, ...]) -> Array:
        q = several(long_product(y, y.T), part)
        return long_product(q, y).astype(narrow)

    tall = unit.shape[0] > unit.shape[1]
    y = (unit.T if tall else unit).astype(narrow)
    r = long_product(y, y.T)
    s = start_scale(r, preconditioning, coefficients.safety)
    y = long_product(s * several(s * s * r, first), y).astype(narrow)
    y = repeat(restarted, y, rest)
    return y.T if tall else y


def gram_flops(
    shape: tuple[int, int],
    num_steps: int,
    coefficients: Coefficients = KELLER_JORDAN,
) -> int:
    """FLOPs of the products of `gram_newton_schulz`, as `plain_flops` counts them.

    >>> gram_flops((2, 4), 5)  # 4p²q + 14p³ multiplications for sides p ≤ q
    352
    """
    p, q = sorted(shape)
    several = parts(coefficients.first(num_steps))
    small = sum(4 * len(part) - 3 for part in several)  # see `gram_form`
    return 2 * (2 * len(several) * p * p * q + small * p**3)


def parts(steps: tuple[Triple, ...]) -> list[tuple[Triple, ...]]:
    """The steps between restarts: as many as `MAX_GROWTH` allows.

    Examples:
      >>> [len(part) for part in parts(KELLER_JORDAN.first(8))]
      [3, 3, 2]
    """
    found: list[tuple[Triple, ...]] = []
    growth = float("inf")  # of what rounding left, until the next step's Gram matrix
    for step in steps:
        if growth > MAX_GROWTH:
            found.append(())
            growth = 1.0
        found[-1] += (step,)
        growth *= step[0] ** 2
    return found
