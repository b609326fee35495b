"""Rank-K: a product of two thin matrices."""

import dataclasses
from typing import ClassVar, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from dropmuon_optax import checks, linalg
from dropmuon_optax.compressors.base import Compressor, check_fraction, num_kept


@final
@dataclasses.dataclass(frozen=True, repr=False)
class RankK(Compressor):
    """Rank-K: the orthogonal projection of x onto r directions, sent as P and Q.

    C(x) = PQᵀ = P(PᵀP)⁻¹Pᵀx with r = round(fraction·min(m, n)) columns in P, which span
    the range of xΩ for a Gaussian sketch Ω of shape (n, r), by matrix products alone.

    α = r/min(m, n), in expectation over a fresh sketch. One column: by Cauchy–Schwarz
    ‖xᵀxω‖² ≥ ‖xω‖⁴/‖ω‖², so the projection onto xω holds ‖xᵀxω‖²/‖xω‖² ≥ ‖xω‖²/‖ω‖² of
    ‖x‖², and with ω restricted to the row space of x, of dimension ρ ≤ min(m, n), where
    its direction is uniform, that is ‖x‖²/ρ in expectation. The next column does the
    same for what is left, whose rank is one lower, and independently of it: the shares
    left multiply to (1 − 1/ρ)(1 − 1/(ρ − 1))… = 1 − r/ρ. Further steps never keep less
    (see `linalg.power_iteration`).

    Warm start: all columns of Ω but one are the last Q's, and the one that held least
    is fresh. It keeps more of matrices that change slowly, but all that holds for any
    matrix is what one fresh column does: α = 1/min(m, n).

    `exact=True` is Top-K of the singular values, for tests and small matrices: by
    singular value decomposition, one matrix after the other. α = r/min(m, n), as the r
    largest of the squared singular values hold that share of their sum. In the spectral
    norm it contracts x with 1 − (σᵣ₊₁/σ₁)², which has no lower bound but 0: none that
    `alpha` could name.

    Payload: `p` and `q`, float32 of shapes (m, r) and (n, r), each with its half of
    the exponent of x's largest entry, so that neither over- nor underflows.

    Attributes:
      fraction: the rank as a fraction of the smaller side, in (0, 1].
      num_steps: power iterations, at least 1.
      warm_start: whether the sketch is the last Q, kept in a state of shape (n, r).
      exact: whether to decompose instead; it takes no key.

    Raises:
      ValueError: if `fraction` is not in (0, 1], `num_steps` is not positive, a flag is
        no bool, or `exact` is given together with what it has no use for. For a shape
        of whose sides the fraction rounds to nothing, every method raises.

    Examples:
      >>> x = jnp.array([[0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
      >>> rank = RankK(0.5, exact=True)
      >>> abs(rank.decompress(rank.compress(x), (2, 4)))
      Array([[0., 2., 0., 0.],
             [0., 0., 0., 0.]], dtype=float32)
      >>> RankK(0.1).alpha((64, 256)), RankK(0.1).num_bits((64, 256)) / (64 * 256)
      (0.09375, 3.75)

    References:
      Vogels et al., PowerSGD, arXiv:1905.13727. The bounds are ours.
    """

    fraction: float
    num_steps: int = 1
    warm_start: bool = False
    exact: bool = False

    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction(self.fraction)
        checks.positive_int("num_steps", self.num_steps)
        for name in ("warm_start", "exact"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"`{name}` must be a bool, got {getattr(self, name)!r}"
                )
        if self.exact and (self.warm_start or self.num_steps != 1):
            raise ValueError(
                "`exact` must be alone, without `num_steps` or `warm_start`, "
                f"got {self!r}"
            )

    @property
    def stateful(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the last Q is kept."""
        return self.warm_start

    @property
    def random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether there is a sketch to draw."""
        return not self.exact

    def alpha(self, shape):
        """The share r/min(m, n), or 1/min(m, n) with a warm start."""
        return (1 if self.warm_start else self._rank(shape)) / min(shape)

    def coded_alpha(self, shape, inner):
        """An estimate, α·inner², and no theorem.

        Q is fitted to the P that arrives, so the error is that of the projection onto
        its range, and ‖P(Q − Q')ᵀ‖² for the Q' that arrives, at most cond(P)² times
        (1 − inner) of what is kept. Neither what the range loses by the coding of P nor
        cond(P) has a bound worth stating in `inner` alone.
        """
        return self.alpha(shape) * inner**2

    def init(self, shape):
        """The first sketch, the same for everyone, or nothing without a warm start."""
        if not self.warm_start:
            return ()
        return _gaussian(jax.random.key(0), (shape[1], self._rank(shape)))

    def _compress(self, x, state, key, arrives):
        unit, scale = linalg.unit_scale(x)
        rank = self._rank(x.shape)
        if self.exact:
            p, q = _truncated_svd(unit, rank)
            return _scaled(p, q, scale), state
        if self.warm_start:
            fresh = _gaussian(key, (x.shape[1], 1))
            held = jnp.sum(state * state, axis=0)
            least = jnp.arange(rank) == jnp.argmin(held)
            sketch = jnp.where(least[None], fresh, state)
        else:
            sketch = _gaussian(key, (x.shape[1], rank))
        p = arrives(linalg.power_iteration(unit, sketch, self.num_steps))
        q = linalg.least_squares(unit, p)
        if self.warm_start:  # a column that says nothing leaves the last one standing
            held = jnp.sum(q * q, axis=0, keepdims=True)
            state = jnp.where((held > 0) & jnp.isfinite(held), q, state)
        return _scaled(p, q, scale), state

    def _decompress(self, payload, shape):
        del shape
        p, of_p = linalg.unit_scale(payload["p"])
        q, of_q = linalg.unit_scale(payload["q"])
        product = jnp.matmul(p, q.T, precision=jax.lax.Precision.HIGHEST)
        return linalg.saturate(product * of_p * of_q)

    def _rank(self, shape):
        return num_kept("fraction", self.fraction, min(shape), "singular values")


def _scaled(p: Array, q: Array, scale: Array) -> dict[str, Array]:
    """P·2ᵃ and Q·s/2ᵃ, with 2ᵃ about √s: exact but for the rounding of Q·s."""
    field = jax.lax.bitcast_convert_type(scale, jnp.uint32) >> 23
    half = jax.lax.bitcast_convert_type((field + 127 >> 1) << 23, jnp.float32)
    return {"p": p * half, "q": q * (scale / half)}


def _gaussian(key, shape: tuple[int, int]) -> Float32[Array, "n r"]:
    return jax.random.normal(key, shape, jnp.float32)


def _truncated_svd(x: Float32[Array, "m n"], rank: int) -> tuple[Array, Array]:
    @jax.custom_batching.sequential_vmap
    def decompose(x: Array) -> tuple[Array, Array]:
        finite = jnp.isfinite(x).all()
        u, s, vt = jnp.linalg.svd(jnp.where(finite, x, 0.0), full_matrices=False)
        return u[:, :rank], vt[:rank].T * s[None, :rank]

    return decompose(x)
