"""Arrays that are hard on an optimizer: what they hold, by name, in every dtype."""

from typing import Any

import jax.numpy as jnp
import numpy as np

KINDS = (
    "normal",
    "scaled",
    "spread",
    "constant",
    "one entry",
    "low rank",
    "zeros",
    "largest",
    "all largest",
    "smallest normal",
    "subnormal",
    "nan",
    "inf",
    "-inf",
)
NOT_FINITE = ("nan", "inf", "-inf")


def array(kind: str, shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """An array of a kind; whole numbers and bools are of no kind."""
    rng = np.random.default_rng(seed)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return rng.integers(0, 2, shape).astype(dtype)
    real = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    x = _real(kind, shape, jnp.finfo(real), rng)
    if real != dtype:
        x = x + 1j * _real("normal", shape, jnp.finfo(real), rng)
    with np.errstate(all="ignore"):
        return np.asarray(x).astype(jnp.dtype(dtype))


def _real(kind: str, shape: tuple[int, ...], info: Any, rng: Any) -> np.ndarray:
    x = rng.standard_normal(shape)
    x = np.clip(x / np.abs(x).max(initial=1e-9), -1, 1)
    low, high = float(info.smallest_normal), float(info.max)
    exponent = rng.uniform(np.log2(low), np.log2(high) - 1)
    with np.errstate(all="ignore"):
        found = {
            "normal": x,
            "scaled": x * 2.0**exponent,
            "spread": x * 2.0 ** rng.uniform(-6, 3, shape),
            "constant": np.full(shape, 0.75),
            "one entry": np.where(
                np.arange(x.size).reshape(shape) == x.size // 2, x, 0
            ),
            "low rank": np.copysign(0.5, x) if x.ndim < 2 else _low_rank(x),
            "zeros": np.zeros(shape),
            "largest": x * high,
            "all largest": np.copysign(high, x),
            "smallest normal": np.copysign(low * 16, x),
            "subnormal": np.copysign(float(info.smallest_subnormal) * 4, x),
        }.get(kind, x)
    if kind in NOT_FINITE and x.size:
        found = found.reshape(-1).copy()
        found[x.size // 2] = float(kind)
        found = found.reshape(shape)
    return found


def _low_rank(x: np.ndarray) -> np.ndarray:
    return x[..., :1] * np.ones((1, x.shape[-1])) if x.shape[-1] else x


def seen(x: Any) -> np.ndarray:
    """What XLA's arithmetic takes an array for, in float64: subnormals are zeros."""
    wide = np.asarray(x).astype(np.float64)
    return np.where(np.abs(wide) < computed(x.dtype).smallest_normal, 0.0, wide)


def computed(dtype: Any) -> Any:
    """The range of the dtype that is computed in."""
    return np.finfo(np.float64 if dtype == jnp.float64 else np.float32)


def lost(dtype: Any) -> float:
    """What an entry of a dtype may lose at the bottom of its range."""
    info = jnp.finfo(dtype)
    flushed = info.smallest_normal >= computed(dtype).smallest_normal
    deep = info.smallest_normal > computed(dtype).smallest_normal
    return float(info.smallest_subnormal if deep else info.smallest_normal) * flushed


class FaultError(AssertionError):
    """What must not be."""


def claim(holds: Any, otherwise: str) -> None:
    """Raises a fault that says `otherwise`, unless it holds."""
    if not holds:
        raise FaultError(otherwise)
