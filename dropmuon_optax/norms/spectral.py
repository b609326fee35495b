"""The spectral norm, whose oracle is Muon's orthogonalization."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, final

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dropmuon_optax import checks, linalg
from dropmuon_optax.linalg import Coefficients
from dropmuon_optax.linalg.gram import gram_flops, gram_form
from dropmuon_optax.linalg.orthogonalize import STATIC, plain_flops, plain_form
from dropmuon_optax.linalg.preconditioning import PRECONDITIONINGS
from dropmuon_optax.norms.base import Norm

# The ratio of a matrix's sides from which its Gram form is the faster one. With p ≤ q
# the sides, Keller Jordan's five steps are 5(2p²q + p³) multiplications in the plain
# form and 4p²q + 14p³ in the Gram form: equal at q = 1.5p. Measured, Gram over plain,
# medians of 7 pairs for p = 64, 256, 768 (CPU time on two cores, jax 0.12 and 0.10):
#   q/p      1         1.5        2          2.5        3          4
#   ratio    1.0–1.5   0.98–1.02  0.86–0.90  0.78–0.83  0.72–0.79  0.66–0.74
GRAM_ASPECT = 2.0


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Spectral(Norm):
    """The spectral norm: the largest singular value, max_i σ_i(x).

    Dual: the nuclear norm Σ_i σ_i(g). Oracle: −t·UVᵀ for g = UΣVᵀ, the negative polar
    factor, here by Newton–Schulz iterations unless told otherwise. They are inexact:
    a singular value that should be 1 is where the coefficients' polynomial puts it
    (0.68…1.20 for the default), which the step inherits. The same polynomial is taken
    in the form that is faster for the matrix's sides: `linalg.newton_schulz`, or
    `linalg.gram_newton_schulz` where one side is at least twice the other. `norm`
    and `dual_norm` are exact, by singular value decomposition, and as slow.

    The default is Keller Jordan's. `Spectral(4, linalg.YOU_JIACHENG,
    preconditioning="schatten")` is faster by a fifth and nearer to the polar factor:
    the root mean square of σ² − 1 is 0.17 to 0.22 on Gaussian matrices with sides from
    64 to 1024, not 0.28 to 0.36, and 0.51, not 0.54, where singular values fall from 1
    to 0.001 along 256 directions.

    The products are in float32, which is the fastest dtype on a CPU. On a GPU or TPU
    `dtype="bfloat16"` should be (Keller Jordan's Muon uses it); that is not measured
    here, so the default is float32 there too:

        backend   default   other
        CPU       float32   bfloat16 is slower (XLA multiplies it in float32)
        GPU, TPU  float32   dtype="bfloat16", not measured

    Attributes:
      num_steps: Newton–Schulz steps; None is the exact polar factor.
      coefficients: the triples of the steps, see `dropmuon_optax.linalg`.
      dtype: dtype of the matrices that are multiplied; None is float32 on every
        backend, or float64 for float64 matrices; see `linalg.newton_schulz`.
      precision: precision of the products; None is JAX's default.
      orthogonalize: a function from a matrix (m, n) with entries of at most 1 to its
        polar factor, in place of all of the above, such as
        `functools.partial(linalg.newton_schulz, num_steps=5)` for one form alone.
      preconditioning: what the matrix is divided by at first, the `"frobenius"` or the
        smaller `"schatten"` norm; see `linalg.newton_schulz`.

    Raises:
      ValueError: if `num_steps` is not positive, is more than the coefficients have,
        if `preconditioning` is none of the two, or if `orthogonalize` is given together
        with another attribute.

    Examples:
      >>> g = jnp.array([[0.0, -3.0], [2.0, 0.0]])
      >>> Spectral(num_steps=None).lmo(g, radius=10.0)
      Array([[ -0.,  10.],
             [-10.,  -0.]], dtype=float32)
      >>> print(Spectral().norm(g), Spectral().dual_norm(g))
      3.0 5.0

    References:
      Muon: Keller Jordan et al., github.com/KellerJordan/Muon. As an LMO:
      Pethick et al., Scion, arXiv:2502.07529.
    """

    num_steps: int | None = 5
    coefficients: Coefficients = linalg.KELLER_JORDAN
    dtype: DTypeLike | None = None
    precision: jax.lax.PrecisionLike = None
    orthogonalize: Callable[[Array], Array] | None = None
    preconditioning: str = "frobenius"

    mixes: ClassVar[bool] = True

    @property
    def symmetric(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the oracle takes a transpose to the transpose: ours does."""
        return self.orthogonalize is None

    def __post_init__(self) -> None:
        if not isinstance(self.coefficients, Coefficients):
            raise ValueError(
                "`coefficients` must be a `linalg.Coefficients`, "
                f"got {self.coefficients!r}"
            )
        if self.num_steps is not None:
            self.coefficients.first(self.num_steps)
        checks.one_of("preconditioning", self.preconditioning, PRECONDITIONINGS)
        object.__setattr__(self, "dtype", checks.float_dtype("dtype", self.dtype))
        if self.orthogonalize is not None:
            checks.is_function("orthogonalize", self.orthogonalize)
            alone = Spectral()
            for name in STATIC:
                if getattr(self, name) != getattr(alone, name):
                    raise ValueError(
                        f"`{name}` must be left alone where `orthogonalize` is given, "
                        f"got {getattr(self, name)!r}"
                    )

    def num_flops(self, shape: tuple[int, int]) -> int:
        """FLOPs of the oracle's matrix products, two for a multiplication and a sum.

        Args:
          shape: of the matrix, (m, n).

        Raises:
          ValueError: if the oracle is no Newton–Schulz iteration of this package.

        Examples:
          >>> Spectral().num_flops((256, 1024)) / 256**3  # sides of 1 : 4
          60.0
        """
        if self.num_steps is None or self.orthogonalize is not None:
            raise ValueError(
                "`num_flops` must be asked of a norm with `num_steps` and without "
                f"`orthogonalize`, got {self!r}"
            )
        if _is_long(shape):
            return gram_flops(shape, self.num_steps, self.coefficients)
        return plain_flops(shape, self.num_steps)

    def largest_entry(self, shape: tuple[int, int]) -> float:
        """1; and a quarter more for polynomials, which overshoot it."""
        del shape
        return 1.0 if self.num_steps is None else 1.25

    def _norm(self, x: Float[Array, "m n"]) -> Float[Array, ""]:
        return jnp.max(_singular_values(x))

    def _dual_norm(self, g: Float[Array, "m n"]) -> Float[Array, ""]:
        return jnp.sum(_singular_values(g))

    def _maximizer(self, g: Float[Array, "m n"]) -> Float[Array, "m n"]:
        if self.orthogonalize is not None:
            return self.orthogonalize(g)
        if self.num_steps is None:
            return linalg.polar_factor(g)
        form = gram_form if _is_long(g.shape) else plain_form
        y = form(
            g,
            self.num_steps,
            self.coefficients,
            self.dtype,
            self.precision,
            self.preconditioning,
        )
        return y.astype(g.dtype)


def _is_long(shape: tuple[int, ...]) -> bool:
    short, long = sorted(shape)
    return long >= GRAM_ASPECT * short


@linalg.one_by_one
def _singular_values(x: Float[Array, "m n"]) -> Float[Array, " r"]:
    finite = jnp.isfinite(x).all()
    values = jnp.linalg.svd(jnp.where(finite, x, 0.0), compute_uv=False)
    return jnp.where(finite, values, jnp.nan)
