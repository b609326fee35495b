"""Checks of arguments, made before anything is traced.

A check looks only at what is known without running the program: Python numbers,
shapes, dtypes. Traced values pass, so that `optax.inject_hyperparams` works.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def is_concrete(value: Any) -> bool:
    """Whether `value` is a plain Python number, so that its range can be checked."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_scalar(value: Any) -> bool:
    """Whether `value` is an array of shape () of real numbers."""
    if not hasattr(value, "dtype") or getattr(value, "shape", None) != ():
        return False
    kinds = jnp.integer, jnp.floating
    return any(jnp.issubdtype(value.dtype, kind) for kind in kinds)


def in_range(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    schedule: bool = False,
) -> None:
    """Refuses a number outside [low, high], and what is no number at all.

    Args:
      name: the argument's name, for the message.
      value: a Python number, or an array of shape () (JAX's aren't looked into).
      low: the smallest value allowed.
      high: the largest value allowed.
      open_low: whether `low` itself is refused.
      open_high: whether `high` itself is refused.
      schedule: whether a schedule, a function of the step count, is allowed too.

    Raises:
      ValueError: naming the argument, the interval and the value.

    >>> in_range("momentum", 1.0, 0.0, 1.0, open_high=True)
    Traceback (most recent call last):
    ...
    ValueError: `momentum` must be in [0.0, 1.0), got 1.0
    """
    if schedule and callable(value):
        return
    interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
    if not is_concrete(value):
        if not _is_scalar(value):
            raise ValueError(
                f"`{name}` must be a number in {interval}"
                f"{' or a schedule' if schedule else ''}, got {value!r}"
            )
        if isinstance(value, jax.Array):
            return
        value = float(value)
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below):
        raise ValueError(f"`{name}` must be in {interval}, got {value!r}")


def is_momentum(name: str, value: Any) -> None:
    """Refuses what is no number in [0, 1) and no schedule."""
    in_range(name, value, 0.0, 1.0, open_high=True, schedule=True)


def positive_int(name: str, value: Any, *, optional: bool = False) -> None:
    """Refuses anything but a whole number of at least 1; None too, unless `optional`.

    >>> positive_int("num_steps", 0)
    Traceback (most recent call last):
    ...
    ValueError: `num_steps` must be a whole number of at least 1, got 0
    """
    if optional and value is None:
        return
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(
            f"`{name}` must be a whole number of at least 1, got {value!r}"
        )


def is_flag(name: str, value: Any) -> None:
    """Refuses anything but True and False.

    >>> is_flag("nesterov", "no")
    Traceback (most recent call last):
    ...
    ValueError: `nesterov` must be True or False, got 'no'
    """
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r}")


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuses what is none of the words allowed.

    >>> one_of("topology", "ring", ("owner", "gather"))
    Traceback (most recent call last):
    ...
    ValueError: `topology` must be 'owner' or 'gather', got 'ring'
    """
    if value not in allowed:
        words = " or ".join(map(repr, allowed))
        raise ValueError(f"`{name}` must be {words}, got {value!r}")


def is_function(name: str, value: Any) -> Callable[..., Any]:
    """Refuses what can't be called, and returns the rest unchanged."""
    if not callable(value):
        raise ValueError(f"`{name}` must be a function, got {value!r}")
    return value


def float_dtype(name: str, value: Any) -> Any:
    """The dtype that `value` names, or None for None; refuses what is no float dtype.

    >>> float_dtype("dtype", "int32")
    Traceback (most recent call last):
    ...
    ValueError: `dtype` must be a floating-point dtype, got 'int32'
    """
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`{name}` must be a floating-point dtype, got {value!r}")
    return dtype


def is_matrix(name: str, value: Any) -> None:
    """Refuses an array that is not a real floating-point matrix.

    >>> is_matrix("g", jnp.zeros(3))
    Traceback (most recent call last):
    ...
    ValueError: `g` must be a matrix of shape (m, n), got shape (3,)
    """
    if jnp.ndim(value) != 2:
        raise ValueError(
            f"`{name}` must be a matrix of shape (m, n), got shape {jnp.shape(value)}"
        )
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`{name}` must be real floating-point, got {dtype}")


def is_inexact(path: str, value: Any, kind: Any = jnp.inexact) -> None:
    """Refuses a leaf that no step can move: of integers, bools, or no array at all.

    Args:
      path: the leaf's path.
      value: an array, or its shape and dtype.
      kind: `jnp.floating` refuses complex numbers too.

    Raises:
      ValueError: naming the leaf.
    """
    dtype = getattr(value, "dtype", type(value))
    if not hasattr(value, "dtype") or not jnp.issubdtype(dtype, kind):
        real = "real " if kind is jnp.floating else ""
        raise ValueError(
            f"the leaf {path!r} must be {real}floating-point, got {dtype} "
            "(`optax.partition` or `optax.masked` keep it out)"
        )
