"""What measured points say of each matrix's L⁰ and L¹, and what to make of it.

The fit is that of Gluon's experiment (arXiv:2505.13416). Whether it deserves to be used
is told by the honesty figure of `smoothness`, which is ours: an echo of the step gives
back the step.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, final

import numpy as np

from dropmuon_optax.layers.leaves import LayersFn, Leaf, join
from dropmuon_optax.norms import Norm
from dropmuon_optax.nouns import Noun
from dropmuon_optax.theory.fit import ASYMMETRY, fit_line
from dropmuon_optax.theory.smoothness import SmoothnessPoints

# Gradients of equal norm at an angle of 60° have h = 1, at 29° 1/2; and at h = 1 the
# radius that Theorem 1 reads off L̂ is the very step it was measured with.
ECHO, COARSE = 1.0, 0.5
ROUNDING = 1e-4  # gradients in float32 are known to about 1e-6


@final
@dataclasses.dataclass(frozen=True, repr=False)
class SmoothnessFit(Noun):
    """What the points of one matrix say of its L⁰ and L¹.

    Attributes:
      path: the leaf's path.
      norm: the norm ‖·‖.
      l0: L⁰, in units of ‖∇f‖⋆ per ‖X‖.
      l1: L¹, in units of 1/‖X‖.
      relative_error: mean ((L̂ − L⁰ − L¹‖∇f‖⋆)/L̂)² over the points, the authors' figure.
      honesty: the median of h = L̂·t/‖∇f‖⋆ over the points.
      step: the median step t = ‖Y − X‖ that was measured with.
      gradient: the median ‖∇f‖⋆.
      num_points: points in which the matrix moved; the others don't count.
      matrix: which of the leaf's matrices; None if it is one.
    """

    path: str
    norm: Norm
    l0: float
    l1: float
    relative_error: float
    honesty: float
    step: float
    gradient: float
    num_points: int
    matrix: int | None = None

    @property
    def name(self) -> str:
        """The path, with [j] behind it for the j-th of several matrices."""
        return self.path if self.matrix is None else f"{self.path}[{self.matrix}]"

    @property
    def radius(self) -> float:
        """Theorem 1's radius at the median gradient; 1/L¹ where L⁰ = 0."""
        below = self.l0 + self.l1 * self.gradient
        return self.gradient / below if below > 0 else math.inf

    @property
    def verdict(self) -> str:
        """What was measured: "curvature", or what came in its place."""
        if self.num_points == 0:
            return "never moved"
        if self.honesty >= ECHO or math.isnan(self.honesty):
            return "echo of the step"
        if self.honesty >= COARSE:
            return "coarse"
        return "rounding" if self.honesty < ROUNDING else "curvature"


def fit_smoothness(
    points: SmoothnessPoints,
    layers: LayersFn,
    params: Any,
    asymmetry: float = ASYMMETRY,
) -> tuple[SmoothnessFit, ...]:
    """The fit L̂ ≈ L⁰ + L¹‖∇f‖⋆ of each matrix, by the exact minimum of `fit_line`.

    On the host, in float64.

    Args:
      points: as `measure_smoothness` returns and `track_smoothness` keeps them, their
        rows of one share of the step: h is a median over rows.
      layers: the function that they were measured with.
      params: the parameters, or their `jax.ShapeDtypeStruct`s.
      asymmetry: λ, the additional weight of points above the line.

    Returns:
      A fit for each matrix that has a norm, in flattening order.

    Raises:
      ValueError: if the points are of other matrices, or not finite, naming the path.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from dropmuon_optax import norms
      >>> from dropmuon_optax.layers import layers_by_path
      >>> from dropmuon_optax.theory.smoothness import measure_smoothness
      >>> layers = layers_by_path(None, [("", norms.MaxEntry(), 1.0)])
      >>> grad = jax.grad(lambda params: jnp.exp(3.0 * params["w"]))
      >>> rows = [
      ...     measure_smoothness(grad, layers, {"w": x}, {"w": x - 0.01})
      ...     for x in (jnp.array(0.0), jnp.array(0.5), jnp.array(1.0))
      ... ]
      >>> points = jax.tree.map(lambda *row: jnp.concatenate(row), *rows)
      >>> (fit,) = fit_smoothness(points, layers, {"w": jnp.array(0.0)})
      >>> round(fit.l0, 2), round(fit.l1, 2), fit.verdict
      (0.0, 3.05, 'curvature')
    """
    names = [
        (leaf.path, matrix, leaf.layer.norm)
        for leaf in join(layers, params)
        for matrix in _matrices(leaf)
    ]
    columns = [np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in points]
    if columns[0].shape[1] != len(names):
        raise ValueError(
            f"`points` must have a column for each of {len(names)} matrices, "
            f"got {columns[0].shape[1]}"
        )
    return tuple(
        _fit(path, matrix, norm, [x[:, i] for x in columns], asymmetry)
        for i, (path, matrix, norm) in enumerate(names)
    )


def _matrices(leaf: Leaf) -> list[int | None]:
    """None if it is one matrix, 0, 1, … if several; nothing if it has no norm."""
    if leaf.layer.norm is None:
        return []
    pieces = leaf.view.matrix_shapes(np.shape(leaf.value))
    count = sum(k for k, _, _ in pieces)
    return [None] if count == 1 and leaf.axis is None else list(range(count))


def _fit(
    path: str,
    matrix: int | None,
    norm: Any,
    columns: list[np.ndarray],
    asymmetry: float,
) -> SmoothnessFit:
    if not np.isfinite(columns).all():
        raise ValueError(f"`points` must be finite, got others for {path!r}")
    moved = columns[1] > 0
    change, step, gradient = (x[moved] for x in columns)
    if not moved.any():
        nan = math.nan
        return SmoothnessFit(path, norm, 0.0, 0.0, nan, nan, nan, nan, 0, matrix)
    estimate = change / step
    l0, l1 = fit_line(gradient, estimate, asymmetry)
    curved = estimate > 0
    error = 1 - (l0 + l1 * gradient[curved]) / estimate[curved]
    honesty = np.divide(
        change, gradient, out=np.where(change > 0, np.inf, 0.0), where=gradient > 0
    )
    return SmoothnessFit(
        path,
        norm,
        l0,
        l1,
        relative_error=float(np.mean(error**2)) if curved.any() else 0.0,
        honesty=float(np.median(honesty)),
        step=float(np.median(step)),
        gradient=float(np.median(gradient)),
        num_points=int(moved.sum()),
        matrix=matrix,
    )


def report_smoothness(
    fits: Sequence[SmoothnessFit],
    probes: SmoothnessPoints | None = None,
    shares: Sequence[float | int] = (),
) -> str:
    """Prints what was found: a line for each matrix, with the honesty figure h.

    Args:
      fits: as `fit_smoothness` returns them.
      probes: points of one step at several shares, a row for each; L̂ at each is shown.
        Where it falls as the share grows, the step is too long to see curvature.
      shares: their shares.

    Returns:
      The text that was printed.

    Raises:
      ValueError: if `probes` has not a row for each share and a column for each fit.

    Examples:
      >>> from dropmuon_optax import norms
      >>> fit = SmoothnessFit("w", norms.RMS(), 0.0, 71.0, 0.01, 1.4, 0.02, 5.0, 9)
      >>> _ = report_smoothness([fit])
      path  norm   L0  L1  MSE_rel  t     h    verdict           radius
      w     RMS()  0   71  0.01     0.02  1.4  echo of the step  0.0141
    """
    header = ["path", "norm", "L0", "L1", "MSE_rel", "t", "h", "verdict", "radius"]
    header += [f"L̂ at {share:g}·t" for share in shares]
    estimates = np.zeros((0, len(fits)))
    if probes is not None:
        change, step, _ = (np.asarray(x, np.float64) for x in probes)
        estimates = change / np.where(step > 0, step, np.nan)
    if estimates.shape != (len(shares), len(fits)):
        raise ValueError(
            f"`probes` must be points of {len(shares)} shares and {len(fits)} "
            f"matrices, got shape {estimates.shape}"
        )
    rows = [header]
    for fit, seen in zip(fits, estimates.T, strict=True):
        figures = (fit.l0, fit.l1, fit.relative_error, fit.step, fit.honesty)
        cells = [fit.name, repr(fit.norm), *map(_short, figures)]
        rows.append([*cells, fit.verdict, _short(fit.radius), *map(_short, seen)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    print(text)
    return text


def _short(value: float) -> str:
    return f"{value:.3g}"
