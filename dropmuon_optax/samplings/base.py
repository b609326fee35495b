"""A sampling, as a noun: the distribution 𝒟 of the set Sᵏ of layers that move.

Others call it a layer-mask schedule. Layer i moves at step k where Uᵢ < Pᵢᵏ, with Pᵢᵏ
its inclusion probability and Uᵢ uniform on [0, 1): one U for all layers, so that sets
are nested (suffixes, if P is non-decreasing), or one for each layer. U is a 32-bit word
and P a threshold for it, so a draw is a comparison of integers and the same on every
device and host; probabilities are exact up to rounding to multiples of 2⁻³².
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dropmuon_optax import checks
from dropmuon_optax.nouns import Noun
from dropmuon_optax.samplings.draws import device_words, threefry_key

SUM_TOLERANCE = 1e-6  # of probabilities around 1; they are divided by their sum

_CERTAIN = 2**32


class Sampling(Noun, abc.ABC):
    """A distribution over sets of layers, given the step count k.

    To write one, give the inclusion probabilities, as `table`; if they change with k,
    `row` says which of the table's rows holds; if it can't be one of any number of
    layers, `check` says so. Drawing, marginals and the host's side follow.

    Attributes:
      nested: whether one uniform number U decides for all layers.
      absent: whether layers outside Sᵏ are not even run (see `present_layers`), rather
        than run and frozen.

    Examples:
      All layers at every third step, and the last one alone in between:

      >>> import dataclasses
      >>> @dataclasses.dataclass(frozen=True, repr=False)
      ... class EveryThird(Sampling):
      ...     def table(self, num_layers):
      ...         last = np.arange(num_layers) == num_layers - 1
      ...         return np.stack([np.ones(num_layers), last.astype(float)])
      ...
      ...     def row(self, num_layers, count):
      ...         return (count % 3).clip(0, 1)
      >>> sampling = EveryThird()
      >>> sampling.marginals(4, 3), sampling.marginals(4, 4)
      (array([1., 1., 1., 1.]), array([0., 0., 0., 1.]))
      >>> sampling.always(4)
      (False, False, False, True)
      >>> sampling.sample(4, 5, key=jax.random.key(0))
      Array([False, False, False,  True], dtype=bool)
    """

    nested: ClassVar[bool] = True
    absent: ClassVar[bool] = False

    @abc.abstractmethod
    def table(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """Inclusion probabilities; each step's are one of the rows.

        Args:
          num_layers: the number of layers b.

        Returns:
          Numbers in [0, 1] of shape (rows, b), layers counted from the input; NumPy's,
          for they are known before anything is traced.
        """

    def row(self, num_layers: int, count: Any) -> Any:
        """Which row of the table holds at step k; the first one, unless overridden.

        Args:
          num_layers: the number of layers b.
          count: k, an array of whole numbers of any shape, NumPy's or JAX's: it may be
            traced, so no `if` over it.

        Returns:
          Whole numbers below the number of rows, of the shape of `count`.
        """
        del num_layers
        return 0 * count

    def _checked(self, num_layers: int) -> Float[np.ndarray, "rows b"]:
        """The table, if it is one."""
        found = np.asarray(self.table(num_layers))
        if found.ndim != 2 or found.shape[1] != num_layers or not len(found):
            raise ValueError(
                f"`table` of {self!r} must have shape (rows, {num_layers}), got "
                f"{found.shape}"
            )
        if not ((found >= 0) & (found <= 1)).all():
            raise ValueError(
                f"`table` of {self!r} must hold probabilities in [0, 1], got "
                f"{found.min()} … {found.max()}"
            )
        return found.astype(float)

    def check(self, num_layers: int) -> None:
        """Raises a ValueError if this can't be a sampling of `num_layers` layers."""
        checks.positive_int("num_layers", num_layers)

    def sample(self, num_layers: int, count: Any, *, key: Any) -> Bool[Array, " b"]:
        """The set S of layers that move, drawn on the device.

        Args:
          num_layers: the number of layers b.
          count: the step count k; may be traced.
          key: the key of this step, `jax.random.fold_in(key, count)`.

        Returns:
          S as bool of shape (b,), counted from the input.

        Raises:
          ValueError: if the sampling is one of another number of layers, or `key` is no
            Threefry key.
        """
        self.check(num_layers)
        words = device_words(threefry_key(key), self.num_words(num_layers))
        return self.decide(num_layers, jnp.asarray(count), words)

    def marginals(self, num_layers: int, count: Any) -> Float[Any, " b"]:
        """The inclusion probabilities Pᵢ = P(i ∈ Sᵏ), exactly.

        Args:
          num_layers: the number of layers b.
          count: the step count k.

        Returns:
          P of shape (b,): float64 in NumPy, or an array of JAX if `count` is one.

        Raises:
          ValueError: if the sampling is one of another number of layers.
        """
        self.check(num_layers)
        table = self._checked(num_layers)
        if isinstance(count, jax.Array):
            table = jnp.asarray(table, jnp.result_type(float))
        else:
            count = np.asarray(count)
        return table[self._checked_row(num_layers, count, len(table))]

    def _checked_row(self, num_layers: int, count: Any, num_rows: int) -> Any:
        """`row`, refused where it is none of the table's; a traced one can't be."""
        row = self.row(num_layers, count)
        if isinstance(row, jax.Array):
            return row
        if np.any((np.asarray(row) < 0) | (np.asarray(row) >= num_rows)):
            raise ValueError(
                f"`row` of {self!r} must be one of the {num_rows} rows of its `table` "
                f"at every step, got {np.max(row)} up to step {np.max(count)}"
            )
        return row

    def can_be_empty(self, num_layers: int) -> bool:
        """Whether there are steps at which no layer may move."""
        self.check(num_layers)
        thresholds = _thresholds(self._checked(num_layers))
        return not (thresholds == _CERTAIN).any(axis=-1).all()

    def always(self, num_layers: int) -> tuple[bool, ...]:
        """Which layers move at every step."""
        self.check(num_layers)
        certain = _thresholds(self._checked(num_layers)) == _CERTAIN
        return tuple(certain.all(axis=0).tolist())

    def remaining(self, num_layers: int, count: int) -> Float[np.ndarray, "rows b"]:
        """The rows of the table that may hold at step k or later; all, by default.

        Args:
          num_layers: the number of layers b.
          count: k, a whole number on the host.
        """
        del count
        return self._checked(num_layers)

    def settled(self, num_layers: int, count: int) -> int:
        """How many of the first layers never move again, from step k on.

        Their outputs are fixed, then: `cache_features` keeps them.

        Args:
          num_layers: the number of layers b.
          count: k, a whole number on the host.

        Returns:
          The number of leading layers that have probability 0 at k and later (if the
          rows of `table` come in an order of their own, at any step).

        Raises:
          ValueError: if the sampling is one of another number of layers, or `count` is
            no whole number from 0 on.
        """
        self.check(num_layers)
        if count != 0:
            checks.positive_int("count", count)
        moves = (_thresholds(self.remaining(num_layers, count)) > 0).any(axis=0)
        return int(np.argmax(moves)) if moves.any() else num_layers

    def num_words(self, num_layers: int) -> int:
        """How many random words a draw takes."""
        return 1 if self.nested else num_layers

    def decide(self, num_layers: int, count: Any, words: Any) -> Any:
        """The sets that random words mean, for arrays of NumPy as of JAX.

        Args:
          num_layers: the number of layers b.
          count: step counts, integers of shape (…).
          words: uint32 of shape (…, num_words).

        Returns:
          bool of shape (…, b).
        """
        xp = words.__array_namespace__()
        thresholds = _thresholds(self._checked(num_layers))
        row = self._checked_row(num_layers, count, len(thresholds))
        certain = xp.asarray(thresholds == _CERTAIN)[row]
        below = xp.asarray(np.minimum(thresholds, _CERTAIN - 1).astype(np.uint32))[row]
        return (words < below) | certain


def _thresholds(probabilities: np.ndarray) -> np.ndarray:
    """Whole numbers t with P(word < t) = probability, for a uniform 32-bit word."""
    return np.round(probabilities * _CERTAIN).astype(np.int64)


def as_probabilities(name: str, values: Any) -> tuple[float, ...]:
    """`values` as a tuple of floats.

    Raises:
      ValueError: if they are no numbers in [0, 1], or it is no sequence.

    >>> as_probabilities("probabilities", 0.5)
    Traceback (most recent call last):
    ...
    ValueError: `probabilities` must be a sequence of numbers in [0, 1], one for each
    layer, such as (0.5, 1.0), got 0.5
    """
    try:
        if any(isinstance(value, bool | np.bool_ | str) for value in values):
            raise TypeError
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError, jax.errors.ConcretizationTypeError):
        found = (-1.0,)
    if not found or not all(0 <= value <= 1 for value in found):
        raise ValueError(
            f"`{name}` must be a sequence of numbers in [0, 1], one for each layer, "
            f"such as (0.5, 1.0), got {values!r}"
        )
    return found


def check_length(sampling: Sampling, values: Sequence[Any], num_layers: int) -> None:
    """Refuses probabilities of another number of layers."""
    if len(values) != num_layers:
        raise ValueError(
            f"`sampling` must have one probability for each of {num_layers} layers, "
            f"got {sampling!r}"
        )
