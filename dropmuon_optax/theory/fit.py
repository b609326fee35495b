"""The line L⁰ + L¹x over points (x, y), with the asymmetric loss of Gluon's experiment.

    loss(L⁰, L¹) = Σ rⱼ² + λ·Σ max(0, rⱼ)²,   rⱼ = yⱼ − L⁰ − L¹xⱼ,   L⁰, L¹ ≥ 0

with x = ‖∇f‖⋆ and y = L̂: smoothness that the line leaves above itself counts 1 + λ
times, since Assumption 1 asks for an upper bound. The loss is convex and piecewise
quadratic. `fit_line` minimizes it over points that are at hand, on the host, exactly;
`refine` follows a stream of them on the device and keeps nine numbers.

References:
  Riabinin et al., Gluon, arXiv:2505.13416: the loss and the bounds. λ = 5 is that of
  the authors' notebooks.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dropmuon_optax import checks

ASYMMETRY = 5.0  # λ of the authors' notebooks
MAX_STEPS = 100  # Newton ends after a handful: each step settles who is above the line
SUFFICIENT = 1e-4  # Armijo's share of the decrease that the slope promises


def fit_line(
    x: np.ndarray, y: np.ndarray, asymmetry: float = ASYMMETRY
) -> tuple[float, float]:
    """The minimizer (L⁰, L¹) of the asymmetric loss, in float64.

    Newton's method with line search, which on piecewise quadratics ends at the minimum
    after finitely many steps. If that lies outside the quadrant, convexity puts the
    constrained one on the axis that is crossed, where the same method finds it.

    Args:
      x: ‖∇f‖⋆ of each point, at least 0, shape (J,).
      y: L̂ of each point, at least 0, shape (J,).
      asymmetry: λ ≥ 0.

    Returns:
      L⁰ in units of y and L¹ in units of y/x. Where points of a single x leave the two
      undetermined, L⁰ = 0; without any points, both are.

    Raises:
      ValueError: if a coordinate is negative or not finite, or λ is negative.

    Examples:
      >>> x = np.array([1.0, 2.0, 3.0])
      >>> l0, l1 = fit_line(x, 0.5 + 2.0 * x)
      >>> round(l0, 6), round(l1, 6)
      (0.5, 2.0)
      >>> l0, l1 = fit_line(x, np.array([2.0, 3.0, 1.0]), asymmetry=0.0)
      >>> round(l0, 6), round(l1, 6)
      (2.0, 0.0)
    """
    checks.in_range("asymmetry", asymmetry, 0.0)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for name, values in (("x", x), ("y", y)):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"`{name}` must be finite and at least 0, got {values}")
    if not y.any():
        return 0.0, 0.0
    unit_x, unit_y = x.max() or 1.0, y.max()
    columns = np.stack([np.ones_like(x), x / unit_x], axis=1)
    chosen = [1] if x.any() else [0]
    if np.ptp(x) > 0:
        l0, l1 = _minimize(columns, y / unit_y, asymmetry)
        chosen = [0, 1] if min(l0, l1) >= 0 else [1] if l0 < 0 else [0]
    solution = np.zeros(2)
    solution[chosen] = _minimize(columns[:, chosen], y / unit_y, asymmetry)
    l0, l1 = solution * unit_y
    return float(l0), float(l1 / unit_x)


def _minimize(columns: np.ndarray, y: np.ndarray, asymmetry: float) -> np.ndarray:
    """The unconstrained minimizer, by Newton steps that each solve one least squares.

    A step is exact where it changes none of the residuals' signs.
    """
    theta = np.linalg.lstsq(columns, y, rcond=None)[0]
    for _ in range(MAX_STEPS):
        r = y - columns @ theta
        root = np.sqrt(_weights(r, asymmetry))
        target = np.linalg.lstsq(columns * root[:, None], y * root, rcond=None)[0]
        there = y - columns @ target
        if ((r > 0) == (there > 0)).all():
            return target
        step, loss = 1.0, _loss(r, asymmetry)
        slope = 2 * np.sum(root**2 * r * (there - r))  # along the step, at most 0
        while _loss(r + step * (there - r), asymmetry) > (
            loss + SUFFICIENT * step * slope
        ):
            step /= 2
            if step < np.finfo(np.float64).eps:  # what is left is rounding
                return theta
        theta = theta + step * (target - theta)
    return theta


def _weights(r: np.ndarray, asymmetry: float) -> np.ndarray:
    return np.where(r > 0, 1 + asymmetry, 1.0)


def _loss(r: np.ndarray, asymmetry: float) -> float:
    return float(np.sum(_weights(r, asymmetry) * r * r))


class Line(NamedTuple):
    """A line for each of N streams of points, and what of the points it rests on.

    Every field has shape (N,). Means and covariances are weighted, and in units of the
    first positive x and y, so that no square leaves the range of float32.
    """

    l0: Float[Array, " N"]  # L⁰
    l1: Float[Array, " N"]  # L¹
    weight: Float[Array, " N"]  # Σw of the points seen
    mean_x: Float[Array, " N"]
    mean_y: Float[Array, " N"]
    cov_xx: Float[Array, " N"]
    cov_xy: Float[Array, " N"]
    unit_x: Float[Array, " N"]
    unit_y: Float[Array, " N"]


def no_line(zeros: Float[Array, " N"]) -> Line:
    """The line before any point: L⁰ = L¹ = 0."""
    return Line(*(jnp.array(zeros) for _ in Line._fields))


def refine(
    line: Line,
    x: Float[Array, " N"],
    y: Float[Array, " N"],
    valid: Bool[Array, " N"],
    asymmetry: float = ASYMMETRY,
) -> Line:
    """The line after one more point of each stream.

    A point gets its weight, 1 + λ or 1, once, by the line that stands when it arrives;
    `fit_line` weighs all by the final one. As the line settles the two agree.

    Args:
      line: the line so far.
      x: ‖∇f‖⋆.
      y: L̂.
      valid: whether the point counts.
      asymmetry: λ.

    Examples:
      >>> line = no_line(jnp.zeros(1))
      >>> for x in (1.0, 2.0, 3.0):
      ...     x = jnp.array([x])
      ...     line = refine(line, x, 0.5 + 2.0 * x, x > 0)
      >>> print(line.l0.round(4), line.l1.round(4))
      [0.5] [2.]
    """
    above = y > line.l0 + line.l1 * x
    w = jnp.where(valid, jnp.where(above, 1 + asymmetry, 1.0), 0.0).astype(x.dtype)
    unit_x = jnp.where(valid & (line.unit_x == 0), x, line.unit_x)
    unit_y = jnp.where(valid & (line.unit_y == 0), y, line.unit_y)
    u = jnp.where(valid, _divided(x, unit_x), 0.0)
    v = jnp.where(valid, _divided(y, unit_y), 0.0)
    weight = line.weight + w
    share = _divided(w, weight)
    to_x, to_y = u - line.mean_x, v - line.mean_y
    mean_x, mean_y = line.mean_x + share * to_x, line.mean_y + share * to_y
    # Welford's, divided by the weight; it cancels nothing.
    cov_xx = (1 - share) * line.cov_xx + share * to_x * (u - mean_x)
    cov_xy = (1 - share) * line.cov_xy + share * to_x * (v - mean_y)
    # The least squares of the moments; outside the quadrant, on the axis crossed.
    l1 = _divided(cov_xy, cov_xx)
    through_0 = _divided(cov_xy + mean_x * mean_y, cov_xx + mean_x * mean_x)
    flat = (l1 < 0) | (mean_x == 0)
    steep = ((mean_y - l1 * mean_x < 0) | (cov_xx == 0)) & (mean_x > 0)
    l1 = jnp.where(steep, through_0, jnp.where(flat, 0.0, l1))
    l0 = jnp.where(steep, 0.0, mean_y - l1 * mean_x)
    slope = _divided(l1 * unit_y, unit_x)
    moments = (weight, mean_x, mean_y, cov_xx, cov_xy, unit_x, unit_y)
    return Line(l0 * unit_y, slope, *moments)


def _divided(a: Array, b: Array) -> Array:
    """a/b, and 0 where b is."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))
