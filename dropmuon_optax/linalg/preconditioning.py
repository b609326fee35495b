"""The scale that a Newton–Schulz iteration starts from, out of its first Gram matrix.

Singular values have to start in [0, 1], and the nearer to 1 the fewer steps they need.
The iteration's first product is the Gram matrix A = XXᵀ, whose norms bound σ_max(X) for
next to nothing. On square Gaussian matrices with sides of 64, 256 and 1024 the Schatten
norm is 1.7, 2.4 and 3.4 times σ_max, the Frobenius norm 4.0, 8.2 and 16.0. For rank 1
both are σ_max to rounding, by which a singular value may exceed 1: no coefficients here
mind (`Coefficients.safety`), as float32 holds the Gram matrix whatever X is rounded to.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

PRECONDITIONINGS = ("frobenius", "schatten")


def start_scale(
    gram: Float[Array, "p p"], preconditioning: str, safety: float
) -> Float[Array, ""]:
    """The s for which sX starts the iteration, from A = XXᵀ; 1 for zero.

    Args:
      gram: A of a matrix whose largest entry is 1.
      preconditioning: `"frobenius"`: 1/s = ‖X‖_F = (Σσ²)^½ = (tr A)^½; `"schatten"`:
        1/s = ‖X‖_S4 = (Σσ⁴)^¼ = ‖A‖_F^½, which is never larger.
      safety: what 1/s is multiplied by, see `Coefficients`.

    >>> start_scale(jnp.diag(jnp.array([16.0, 9.0])), "frobenius", 1.0)
    Array(0.2, dtype=float32)
    """
    if preconditioning == "schatten":
        norm = jnp.sqrt(jnp.sqrt(jnp.sum(gram * gram)))
    else:
        norm = jnp.sqrt(jnp.sum(gram * jnp.eye(len(gram), dtype=gram.dtype)))
    return 1 / (safety * norm + (norm == 0).astype(norm.dtype))  # see `unit_scale`
