"""Layer-wise smoothness along a run: L̂ᵢ = ‖∇ᵢf(Y) − ∇ᵢf(X)‖⋆ / ‖Yᵢ − Xᵢ‖₍ᵢ₎.

    Assumption 1.  ‖∇ᵢf(X) − ∇ᵢf(Y)‖⋆ ≤ (L⁰ᵢ + L¹ᵢ‖∇ᵢf(X)‖⋆)·‖Xᵢ − Yᵢ‖₍ᵢ₎

Gluon's experiment estimates L⁰ and L¹ from X = Xᵏ, Y = Xᵏ⁺¹, the two gradients taken on
the batches of the two steps, so that their difference holds the noise of both. Here the
batch may be the same. What follows is ours, not the paper's: with t = ‖Yᵢ − Xᵢ‖₍ᵢ₎, the
honesty figure

    h = L̂ᵢ·t/‖∇ᵢf(Y)‖⋆ = ‖∇ᵢf(Y) − ∇ᵢf(X)‖⋆ / ‖∇ᵢf(Y)‖⋆ ≤ 1 + ‖∇ᵢf(X)‖⋆/‖∇ᵢf(Y)‖⋆

is about 2 at most, whatever f is, and √2 if the gradients are independent noise. Where
it is near, L̂ = h·‖∇ᵢf‖⋆/t only echoes t: the fit gives L⁰ ≈ 0, L¹ ≈ √2/t, and the
"theoretical" radius 1/L¹ ≈ 0.71·t follows from whatever step was used. Smoothness is
seen where h is small; measure at shares of the step to get there.

References:
  Riabinin, Shulgin, Gruntkowska, Richtárik, Gluon, arXiv:2505.13416, Assumption 1 and
  the section on estimating L⁰ and L¹.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dropmuon_optax import checks, linalg
from dropmuon_optax.layers.leaves import LayersFn, join
from dropmuon_optax.layers.trees import check_gradients, checked
from dropmuon_optax.meshes import gathered
from dropmuon_optax.theory.fit import ASYMMETRY, Line, no_line, refine


class SmoothnessPoints(NamedTuple):
    """What was measured: a row for each pair of points, a column for each matrix.

    The matrices are those of all leaves that have a norm, in flattening order; a leaf
    of several (attention heads, stacked layers) has a column for each. A row of zeros
    is a pair that is not there; a zero in `step`, a matrix that did not move.
    """

    change: Float[Array, "*J N"]  # ‖∇f(Y) − ∇f(X)‖⋆
    step: Float[Array, "*J N"]  # t = ‖Y − X‖
    gradient: Float[Array, "*J N"]  # ‖∇f(Y)‖⋆, at the second point as in the paper

    @property
    def smoothness(self) -> Float[Array, "*J N"]:
        """L̂, in units of ‖∇f‖⋆ per ‖X‖; not finite where nothing moved."""
        return self.change / self.step

    @property
    def honesty(self) -> Float[Array, "*J N"]:
        """The figure h = L̂·t/‖∇f‖⋆: near √2 … 2, L̂ is an echo of the step."""
        return self.change / self.gradient


def measure_smoothness(
    grad_fn: Callable[..., Any],
    layers: LayersFn,
    before: Any,
    after: Any,
    *args: Any,
    shares: Sequence[float | int] = (1.0,),
) -> SmoothnessPoints:
    r"""Smoothness between two points, both gradients on the same batch.

    L̂ᵢ(ρ) = ‖∇ᵢf(X + ρ(Y − X); ξ) − ∇ᵢf(X; ξ)‖⋆ / ‖ρ(Yᵢ − Xᵢ)‖₍ᵢ₎ for each share ρ. If
    it changes with ρ, the step is too long for a local estimate. Norms are exact (a
    singular value decomposition for each spectral one). Pure: may be jitted.

    Args:
      grad_fn: (params, \*args) -> ∇f, such as `jax.grad(loss)`.
      layers: a function from the parameters to a tree of `Layer`s. Leaves whose norm is
        None are left out.
      before: X, the parameters before a step.
      after: Y, those after it.
      *args: the batch ξ, and whatever else `grad_fn` takes.
      shares: ρ of each row. In float32 a gradient is known to about 1e-6 of itself, so
        rows whose h is not far above that show rounding, not curvature.

    Returns:
      Points of shape (number of shares, number of matrices), in float32 or wider.

    Raises:
      ValueError: if `shares` is empty or has a number outside (0, ∞).

    Examples:
      On f(x) = cosh x, x > 0, whose curvature grows with the gradient:

      >>> from dropmuon_optax import norms
      >>> from dropmuon_optax.layers import layers_by_path
      >>> layers = layers_by_path(None, [("", norms.MaxEntry(), 1.0)])
      >>> grad, x, y = jax.grad(jnp.cosh), jnp.array(3.0), jnp.array(2.0)
      >>> points = measure_smoothness(grad, layers, x, y, shares=(1, 0.1))
      >>> for h, L in zip(points.honesty[:, 0], points.smoothness[:, 0], strict=True):
      ...     print(f"h = {h:.1f}, L̂ = {L:.1f}")
      h = 1.8, L̂ = 6.4
      h = 0.1, L̂ = 9.6
    """
    checks.is_function("grad_fn", grad_fn)
    if not shares:
        raise ValueError("`shares` must hold at least one number, got none")
    for share in shares:
        checks.in_range("shares", share, 0.0, math.inf, open_low=True, open_high=True)
    start = grad_fn(before, *args)
    rows = []
    for share in shares:
        there = jax.tree.map(lambda x, y, a=share: _between(x, y, a), before, after)
        rows.append(_row(layers, before, start, there, grad_fn(there, *args)))
    return jax.tree.map(lambda *row: jnp.stack(row), *rows)


def _between(x: Array, y: Array, share: float | int) -> Array:
    if share == 1:
        return y
    return (x.astype(linalg.wide_dtype(x)) + share * _minus(y, x)).astype(x.dtype)


def _minus(a: Array, b: Array) -> Array:
    wide = linalg.wide_dtype(a, b)
    return a.astype(wide) - b.astype(wide)


def _row(layers: LayersFn, x: Any, gx: Any, y: Any, gy: Any) -> SmoothnessPoints:
    """One row of points, shape (N,): from X and ∇f(X) to Y and ∇f(Y)."""
    return SmoothnessPoints(
        change=_norms(layers, jax.tree.map(_minus, gy, gx), dual=True),
        step=_norms(layers, jax.tree.map(_minus, y, x), dual=False),
        gradient=_norms(layers, gy, dual=True),
    )


def _norms(layers: LayersFn, tree: Any, *, dual: bool) -> Float[Array, " N"]:
    """‖·‖ or ‖·‖⋆ of every matrix that has a norm, in flattening order."""
    dtype, found = linalg.wide_dtype(*jax.tree.leaves(tree)), []
    for leaf in join(layers, tree):
        norm = leaf.layer.norm
        if norm is not None:
            of = norm.dual_norm if dual else norm.norm
            for matrices in leaf.view.to_pieces(leaf.value):
                found.append(jax.vmap(of)(gathered(matrices)).astype(dtype))
    return jnp.concatenate(found) if found else jnp.zeros(0, dtype)


class History(NamedTuple):
    """Points of a run in constant memory: a thinned buffer, and the streaming fit."""

    num_points: Any  # rows seen, int32 of shape ()
    stride: Any  # of which every stride-th is kept, int32 of shape ()
    points: SmoothnessPoints  # (capacity, N), rows not yet filled are zeros
    line: Line  # L⁰ and L¹ of each matrix by all rows seen, (N,)


def no_history(layers: LayersFn, params: Any, capacity: int = 128) -> History:
    """An empty history of the matrices of `params`.

    Args:
      layers: a function from the parameters to a tree of `Layer`s.
      params: the parameters.
      capacity: rows to keep, an even number.

    Raises:
      ValueError: if `capacity` is not even and positive.
    """
    check_capacity(capacity)
    row = jax.eval_shape(lambda tree: _norms(layers, tree, dual=False), params)
    row = jnp.zeros_like(row)
    rows = [jnp.zeros((capacity, *row.shape), row.dtype) for _ in range(3)]
    counts = jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32)
    return History(*counts, SmoothnessPoints(*rows), no_line(row))


def check_capacity(capacity: Any) -> None:
    """Refuses what is no even number of rows."""
    checks.positive_int("capacity", capacity)
    if capacity % 2:
        raise ValueError(f"`capacity` must be even, got {capacity}")


def remember(
    history: History, row: SmoothnessPoints, asymmetry: float = ASYMMETRY
) -> History:
    """The history after one more row, of shape (N,).

    When the buffer is full, every second row is dropped and from then on half as many
    are kept: what stays is spread evenly over the whole run.
    """
    seen, (capacity, _) = history.num_points, history.points.step.shape
    full = seen == capacity * history.stride
    stride = jnp.where(full, 2 * history.stride, history.stride)

    def keep(old: Array, new: Array) -> Array:
        half = jnp.concatenate([old[::2], jnp.zeros_like(old[::2])])
        old = jnp.where(full, half, old)
        slot = seen // stride
        return old.at[slot].set(jnp.where(seen % stride == 0, new, old[slot]))

    points = SmoothnessPoints(*map(keep, history.points, row))
    valid = row.step > 0
    estimate = row.change / jnp.where(valid, row.step, 1.0)
    line = refine(history.line, row.gradient, estimate, valid, asymmetry)
    return History(optax.safe_increment(seen), stride, points, line)


class SmoothnessState(NamedTuple):
    """State of `track_smoothness`."""

    count: Any  # k, steps taken, int32 of shape ()  # pyright: ignore
    params: Any  # X of the step before
    gradient: Any  # ∇f(X; ξ) of the step before, in float32 or wider
    history: History


def track_smoothness(
    layers: LayersFn, capacity: int = 128, every: int = 1, asymmetry: float = ASYMMETRY
) -> optax.GradientTransformationExtraArgs:
    """Leaves the updates alone and records L̂ between consecutive steps.

    Put it first in a chain, where updates are gradients. It compares the gradient of
    step k with that of step k − 1. Those come from two batches, as in the published
    experiment, unless `update` is also given `replayed_gradient`, ∇f(Xᵏ; ξᵏ⁻¹), the
    gradient of the previous batch at the present parameters; then L̂ is that of one
    batch. (`measure_smoothness` does the same for a step at hand.)

    Args:
      layers: a function from the parameters to a tree of `Layer`s.
      capacity: rows to keep; see `remember`.
      every: steps between measurements: exact norms may cost more than the step.
      asymmetry: λ of the streaming fit.

    Returns:
      A transformation that needs the parameters. Its state holds a copy of them and of
      the gradient, and `history`, whose `points` are for `fit_smoothness` and whose
      `line` is the streaming fit.

    Raises:
      ValueError: if `capacity` or `every` is out of range; from `update`, if the
        parameters are missing.

    Examples:
      >>> from dropmuon_optax import norms
      >>> from dropmuon_optax.layers import layers_by_path
      >>> layers = layers_by_path(None, [("", norms.Frobenius(), 1.0)])
      >>> tx = optax.chain(track_smoothness(layers), optax.sgd(0.1))
      >>> x = jnp.array([3.0, 4.0])
      >>> state = tx.init(x)
      >>> for _ in range(5):  # f = 2‖x‖²
      ...     updates, state = tx.update(4.0 * x, state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> points = state[0].history.points
      >>> print(points.smoothness[:4, 0], state[0].history.num_points)
      [4. 4. 4. 4.] 4
    """
    checks.is_function("layers", layers)
    check_capacity(capacity)
    checks.positive_int("every", every)
    checks.in_range("asymmetry", asymmetry, 0.0, math.inf, open_high=True)

    def init(params: Any) -> SmoothnessState:
        zeros = jax.tree.map(
            lambda p: jnp.zeros_like(p, dtype=linalg.wide_dtype(p)), params
        )
        history = no_history(layers, params, capacity)
        old = jax.tree.map(jnp.zeros_like, params)
        return SmoothnessState(jnp.zeros((), jnp.int32), old, zeros, history)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        replayed_gradient: Any = None,
        **extra: Any,
    ) -> tuple[Any, SmoothnessState]:
        del extra
        if params is None:
            raise ValueError(
                "`params` must be given to `update` to measure smoothness, got None"
            )
        now = updates if replayed_gradient is None else replayed_gradient
        check_gradients(now, params)

        def measured() -> History:
            row = _row(layers, state.params, state.gradient, params, now)
            dtype = state.history.points.step.dtype
            row = jax.tree.map(lambda x: x.astype(dtype), row)
            return remember(state.history, row, asymmetry)

        due = (state.count > 0) & (state.count % every == 0)
        history = jax.lax.cond(due, measured, lambda: state.history)
        old = jax.tree.map(jnp.copy, params)  # the caller may donate both
        gradient = jax.tree.map(lambda g, z: g.astype(z.dtype), updates, state.gradient)
        count = optax.safe_increment(state.count)
        return updates, SmoothnessState(count, old, gradient, history)

    return checked(optax.GradientTransformationExtraArgs(init, update), jnp.floating)
