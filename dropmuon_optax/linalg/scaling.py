"""Scales: what keeps squares, reciprocals and roundings inside a dtype's range."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def wide_dtype(*arrays: Array | jax.ShapeDtypeStruct) -> np.dtype:
    """The dtype to compute in: float64 if an array has it, float32 otherwise.

    It is complex, of as many bits in each part, if an array is.

    Examples:
      >>> wide_dtype(jnp.zeros(2, jnp.bfloat16))
      dtype('float32')
    """
    double = any(x.dtype in (jnp.float64, jnp.complex128) for x in arrays)
    if any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in arrays):
        return np.dtype(np.complex128 if double else np.complex64)
    return np.dtype(np.float64 if double else np.float32)


def ranged_dtype(x: ArrayLike | jax.ShapeDtypeStruct) -> np.dtype:
    """The dtype of `x`, or float32 if its range is shorter: float16 and 8-bit floats.

    A tenth of a small gradient in float16 is zero, and a learning rate of 1e-8, too.

    >>> ranged_dtype(jnp.zeros(2, jnp.float16)), ranged_dtype(jnp.zeros(2, "bfloat16"))
    (dtype('float32'), dtype(bfloat16))
    """
    dtype = np.dtype(jnp.result_type(x))
    if not jnp.issubdtype(dtype, jnp.floating):
        return dtype
    short = jnp.finfo(dtype).smallest_normal > np.finfo(np.float32).smallest_normal
    return np.dtype(np.float32) if short else dtype


def unit_scale(
    x: Array, axis: int | None = None
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Splits x into u·s with max |u| = 1, so that squaring u is safe.

    Args:
      x: an array.
      axis: the axis along which to take the maximum; None is all of them.

    Returns:
      u, in float32 or wider, and s ≥ 0, with `axis` kept at length 1 (s is a scalar if
      `axis` is None). Where x is zero, u and s are. Where x is not finite, nor is s.
      Without entries, s is zero.

    Examples:
      >>> unit_scale(jnp.array([[3e-30, -6e-30]]))[0]
      Array([[ 0.5, -1. ]], dtype=float32)
    """
    x = x.astype(wide_dtype(x))
    scale = jnp.max(jnp.abs(x), axis=axis, keepdims=axis is not None, initial=0.0)
    # No `jnp.where`: under `vmap` without `jax.set_mesh`, JAX gives its constants no
    # mesh and refuses to select between them by what lies on an Explicit one.
    # XLA divides by a scalar through its reciprocal, which for the largest floats is
    # subnormal and counts as zero: bring both nearer to 1 first, exactly.
    nudge = 16 - (16 - 1 / 16) * (scale > 1).astype(x.dtype)
    divisor = scale * nudge + (scale == 0).astype(x.dtype)
    return x * nudge / divisor, scale


def saturate(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Puts the largest finite numbers in the place of ±∞; NaN stays.

    Examples:
      >>> saturate(jnp.array([jnp.inf, -1.0]))
      Array([ 3.4028235e+38, -1.0000000e+00], dtype=float32)
    """
    largest = jnp.finfo(x.dtype).max
    return jnp.clip(x, -largest, largest)


def l2_norm(x: Float[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
    """√Σx² along `axis` (kept at length 1; None is all), whatever the scale of x."""
    unit, scale = unit_scale(x, axis)
    return scale * jnp.sqrt(jnp.sum(unit * unit, axis=axis, keepdims=axis is not None))


def l2_direction(
    x: Float[Array, "..."], axis: int | None = None
) -> Float[Array, "..."]:
    """x/√Σx² along `axis` (None is all), and zero where x is zero.

    Examples:
      >>> l2_direction(jnp.full((2, 2), 6e4, jnp.float16))
      Array([[0.5, 0.5],
             [0.5, 0.5]], dtype=float32)
    """
    unit, _ = unit_scale(x, axis)
    norm = jnp.sqrt(jnp.sum(unit * unit, axis=axis, keepdims=axis is not None))
    return unit / (norm + (norm == 0).astype(norm.dtype))


def nan_unless_finite(x: Float[Array, "..."], scale: Float[Array, ""]) -> Array:
    """x, or NaN everywhere if `scale` is not finite; by arithmetic, see `unit_scale`.

    Examples:
      >>> nan_unless_finite(jnp.ones(2), jnp.array(jnp.inf))
      Array([nan, nan], dtype=float32)
    """
    return x * (1 + 0 * scale).astype(x.dtype)
