"""The random words behind a draw, on the device and on the host: the same bits.

All randomness of the samplings is `jax.random.fold_in`: word j of step k is the first
half of fold_in(fold_in(key, k), j). That is one evaluation of the Threefry-2x32 cipher,
in integers, so a few lines of NumPy give the same bits without JAX, its queues or its
devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry_key(key: Any) -> Array:
    """`key` as a typed Threefry key of shape ().

    Args:
      key: `jax.random.key(seed)`, or a raw key, uint32 of shape (2,). May be traced.

    Raises:
      ValueError: if it is anything else, such as an `rbg` key, whose bits depend on the
        device that draws them.

    Examples:
      >>> threefry_key(np.array([0, 7], np.uint32)) == jax.random.key(7)
      Array(True, dtype=bool)
    """
    if _is_raw(key):
        return jax.random.wrap_key_data(jnp.asarray(key), impl="threefry2x32")
    return key


def host_key(key: Any) -> tuple[int, int]:
    """The two words of `key`, fetched from where it lives; errors as `threefry_key`."""
    if isinstance(key, Tracer):
        raise ValueError(f"`key` must be a concrete key, not traced, got {key!r}")
    first, second = np.asarray(key if _is_raw(key) else jax.random.key_data(key))
    return int(first), int(second)


def _is_raw(key: Any) -> bool:
    """Whether the key is raw and not typed; refuses what is no Threefry key."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape == () and str(jax.random.key_impl(key)) == "threefry2x32":
            return False
    elif dtype == np.uint32 and shape == (2,):
        return True
    raise ValueError(
        '`key` must be one Threefry key, such as jax.random.key(0, impl="threefry2x32"'
        f") or its two uint32 words, got {key!r}"
    )


def device_words(key: Array, num_words: int) -> UInt32[Array, " num_words"]:
    """Words 0, …, num_words − 1 of the step whose key, fold_in(key, k), is given."""

    def word(j: Array) -> Array:
        return jax.random.key_data(jax.random.fold_in(threefry_key(key), j))[0]

    return jax.vmap(word)(jnp.arange(num_words, dtype=jnp.uint32))


def host_words(
    key_data: tuple[int, int], steps: UInt32[np.ndarray, " steps"], num_words: int
) -> UInt32[np.ndarray, "steps num_words"]:
    """What `device_words` gives at each of `steps`, computed by NumPy alone.

    Args:
      key_data: the two words of the key.
      steps: step counts k.
      num_words: how many words a step draws.

    Examples:
      >>> host_words((0, 7), np.array([5], np.uint32), 2)
      array([[3742030581,  642971876]], dtype=uint32)
      >>> device_words(jax.random.fold_in(jax.random.key(7), 5), 2)
      Array([3742030581,  642971876], dtype=uint32)
    """
    key = [np.full(1, word, np.uint32) for word in key_data]
    of_step = _fold_in(key[0], key[1], steps)
    numbers = np.arange(num_words, dtype=np.uint32)
    return _fold_in(of_step[0][:, None], of_step[1][:, None], numbers)[0]


def _fold_in(k0: np.ndarray, k1: np.ndarray, data: np.ndarray) -> list[np.ndarray]:
    """Threefry-2x32 of the block (0, data) under the key (k0, k1), in 20 rounds.

    Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011, section 3.2.
    """
    keys = (k0, k1, k0 ^ k1 ^ np.uint32(_PARITY))
    x0, x1 = np.broadcast_arrays(k0, data + k1)
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
            x1 = x1 ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return [x0, x1]
