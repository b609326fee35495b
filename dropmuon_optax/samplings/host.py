"""Which layers move at step k, known on the host before the step is dispatched."""

import functools
from collections import OrderedDict
from typing import Any

import jax
import numpy as np

from dropmuon_optax.samplings.base import Sampling
from dropmuon_optax.samplings.draws import host_key, host_words

_BLOCK = 1024  # steps computed at once
_LAST_STEP = 2**31 - 1  # where Optax's counters stop

# Words of the keys seen last, by identity: a key is fetched from its device once. The
# key stands beside its words so that its id can't be given to another.
_known_keys: OrderedDict[int, tuple[Any, tuple[int, int]]] = OrderedDict()
_MAX_KNOWN_KEYS = 64


def active_layers(
    sampling: Sampling, num_layers: int, key: Any, step: int | np.integer
) -> tuple[bool, ...]:
    """The set Sᵏ that `drop_layers(…, sampling, key=key)` draws at step k.

    Computed by NumPy in blocks of steps, without a call to JAX (but for a new key,
    which is fetched once), so it neither waits for the accelerator nor delays it.

    Args:
      sampling: the distribution of Sᵏ.
      num_layers: the number of layers b, such as `count_layers(layers(params))`.
      key: the key that was given to `drop_layers`. Pass the same object at every step.
      step: the step count k, from 0, as a Python integer.

    Returns:
      b bools, counted from the input: whether each layer moves. Hashable, to be given
      to a jitted train step as a static argument.

    Raises:
      ValueError: if the sampling is one of another number of layers, `key` is no
        Threefry key, or `step` is no whole number in [0, 2³¹).

    Examples:
      >>> from dropmuon_optax.samplings.progressive import Progressive
      >>> key = jax.random.key(0)
      >>> for step in range(3):
      ...     print(active_layers(Progressive(), 4, key, step))
      (False, False, False, True)
      (True, True, True, True)
      (False, False, True, True)
    """
    if not isinstance(sampling, Sampling):
        raise ValueError(f"`sampling` must be a sampling, got {sampling!r}")
    whole = isinstance(step, int | np.integer) and not isinstance(step, bool)
    if not (whole and 0 <= step <= _LAST_STEP):
        raise ValueError(
            f"`step` must be a whole number in [0, 2³¹) on the host, got {step!r}"
        )
    block, place = divmod(int(step), _BLOCK)
    sets = _sets_of_block(sampling, num_layers, _words_of(key), block)
    return tuple(sets[place].tolist())


def present_layers(
    sampling: Sampling, num_layers: int, key: Any, step: int | np.integer
) -> tuple[bool, ...]:
    """The layers that are run at step k, of which those of `active_layers` move.

    All of them, for samplings that only freeze; for those that have layers absent
    (`Grown`, `StochasticDepth`), the same set Sᵏ. Hand it to a model that leaves out
    the residual branches of the others, by `scan_layers(…, present=…)` or a loop.

    Args:
      sampling: as for `active_layers`.
      num_layers: likewise.
      key: likewise.
      step: likewise.

    Returns:
      b bools, counted from the input, to be given to a jitted train step as a static
      argument.

    Raises:
      ValueError: as `active_layers` does.

    Examples:
      >>> from dropmuon_optax.samplings.grown import Grown
      >>> from dropmuon_optax.samplings.progressive import Progressive
      >>> key, some = jax.random.key(0), (True, False, True)
      >>> present_layers(Grown(((0, some), (9, (True,) * 3))), 3, key, 8)
      (True, False, True)
      >>> present_layers(Progressive(), 3, key, 8)
      (True, True, True)
    """
    active = active_layers(sampling, num_layers, key, step)
    return active if sampling.absent else (True,) * num_layers


@functools.lru_cache(maxsize=32)
def _sets_of_block(
    sampling: Sampling, num_layers: int, key_data: tuple[int, int], block: int
) -> np.ndarray:
    """Bools of shape (steps, b) for `_BLOCK` steps."""
    sampling.check(num_layers)
    steps = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.uint32)
    words = host_words(key_data, steps, sampling.num_words(num_layers))
    return sampling.decide(num_layers, steps.astype(np.int64), words)


def _words_of(key: Any) -> tuple[int, int]:
    if not isinstance(key, jax.Array):
        return host_key(key)
    known = _known_keys.get(id(key))
    if known is None:
        known = _known_keys[id(key)] = (key, host_key(key))
        if len(_known_keys) > _MAX_KNOWN_KEYS:
            _known_keys.popitem(last=False)
    return known[1]
