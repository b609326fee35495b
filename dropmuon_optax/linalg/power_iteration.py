"""The range of a matrix, and what lies in it, by matrix products alone.

There is no QR, Cholesky or eigenvalue routine here: batched LAPACK calls can starve the
thread pool that they run on, and several processes on one machine then hang.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from dropmuon_optax.linalg.coefficients import POLAR_EXPRESS
from dropmuon_optax.linalg.orthogonalize import newton_schulz
from dropmuon_optax.linalg.scaling import l2_direction

ORTHOGONALIZE_STEPS = 8  # of Polar Express: singular values from 1e-6 up go near 1
INVERSE_STEPS = (
    14  # each doubles the digits, once 2¹⁴ times the smallest eigenvalue is 1
)


def power_iteration(
    x: Float[Array, "m n"], sketch: Float[Array, "n r"], num_steps: int = 1
) -> Float32[Array, "m r"]:
    """A well-conditioned basis of the range of X·sketch, or of (XXᵀ)ᵗX·sketch.

    Each further step projects X from the left and from the right in turn, which is
    least squares for one factor of a rank-r matrix with the other one fixed: what the
    range captures of X, ‖ΠX‖_F, never falls.

    Args:
      x: a matrix of shape (m, n) with entries of at most 1.
      sketch: a matrix of shape (n, r), its columns in any unit.
      num_steps: number of steps t + 1, at least 1.

    Returns:
      P of shape (m, r) whose columns span the range and are nearly orthonormal; where
      X·sketch has less than r independent columns, some are arbitrary or zero.

    Examples:
      >>> x = jnp.array([[3.0, 0.0], [4.0, 0.0]])
      >>> power_iteration(x, jnp.array([[1.0], [1.0]])).round(3)
      Array([[0.6],
             [0.8]], dtype=float32)

    References:
      Halko et al., Finding structure with randomness, arXiv:0909.4061. Vogels et al.,
      PowerSGD, arXiv:1905.13727.
    """
    p = _orthogonalize(_product(x, l2_direction(sketch, axis=0)))
    for _ in range(num_steps - 1):
        p = _orthogonalize(_product(x, _orthogonalize(_product(x.T, p))))
    return p


def least_squares(
    x: Float[Array, "m n"], p: Float[Array, "m r"]
) -> Float32[Array, "n r"]:
    """The Q that makes ‖X − PQᵀ‖_F smallest: Q = XᵀP(PᵀP)⁻¹.

    PQᵀ is then the orthogonal projection of X onto the range of P. The inverse is
    Newton's, of an r × r matrix. Directions in which P has almost nothing, below about
    a hundredth of its largest singular value, are damped instead of inverted: PQᵀ is
    X times a symmetric matrix with eigenvalues in [0, 1], so it is never larger than X
    and never further from X than zero is.

    Args:
      x: a matrix of shape (m, n) with entries of at most 1.
      p: a matrix of shape (m, r).

    Returns:
      Q of shape (n, r).

    Examples:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> least_squares(x, jnp.array([[2.0], [0.0]]))
      Array([[0.5],
             [1. ]], dtype=float32)
    """
    return _product(_product(x.T, p), _inverse(_product(p.T, p)))


def _inverse(gram: Float[Array, "r r"]) -> Float[Array, "r r"]:
    """A symmetric positive matrix's inverse, damped: (1 − (1 − λ/c)^(2^t))/λ."""
    bound = jnp.max(jnp.sum(jnp.abs(gram), axis=0))
    bound = bound + (bound == 0).astype(bound.dtype)

    def step(_: Array, y: Array) -> Array:
        return 2 * y - _product(y, _product(gram, y))

    start = jnp.eye(len(gram), dtype=gram.dtype) / bound
    return jax.lax.fori_loop(0, INVERSE_STEPS, step, start)


def _orthogonalize(y: Float[Array, "m r"]) -> Float[Array, "m r"]:
    unit = l2_direction(y, axis=0)  # columns alike first: the rest is well-conditioned
    return newton_schulz(
        unit, ORTHOGONALIZE_STEPS, POLAR_EXPRESS, precision=jax.lax.Precision.HIGHEST
    )


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
