"""Two compressors: what the first would send in float32, the second compresses."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from dropmuon_optax.compressors.base import Compressor


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Composed(Compressor):
    """The composition: `inner` compresses every float32 matrix of `outer`'s payload.

    `Composed(TopK(0.1), Natural())` sends the values of Top-K as signs and powers of
    two; `Composed(RankK(0.1), Natural())` both factors, the second one fitted by least
    squares to the first one as it arrives.

    α = α_outer·α_inner where the outer one is a projection and its floats coordinates
    (Top-K, columns, Rand-K, scaled sign, identity, dropout): see
    `Compressor.coded_alpha` for the proof, `Damping.coded_alpha` for the bound there,
    and `RankK.coded_alpha`, where it is an estimate.

    Payload: that of `outer`, with the payload of `inner` in the place of each float32
    matrix.

    Attributes:
      outer: the compressor of the matrix; no composition itself.
      inner: the compressor of its floats, without memory; may be a composition.

    Raises:
      ValueError: if these are no compressors, `outer` leaves no floats, or `inner` has
        memory. For a shape of whose floats `inner` would keep nothing, every method
        raises.

    Examples:
      >>> from dropmuon_optax.compressors import Natural, TopK
      >>> x = jnp.array([[3.0, -1.0, 0.5], [0.0, -5.0, 2.0]])
      >>> both = Composed(TopK(1 / 3), Natural())
      >>> both.decompress(both.compress(x), (2, 3))
      Array([[ 4.,  0.,  0.],
             [ 0., -4.,  0.]], dtype=float32)
      >>> 32 * 768 * 3072 / both.num_bits((768, 3072))
      8.02...
    """

    outer: Compressor
    inner: Compressor

    def __post_init__(self) -> None:
        for name in ("outer", "inner"):
            if not isinstance(getattr(self, name), Compressor):
                raise ValueError(
                    f"`{name}` must be a compressor, got {getattr(self, name)!r}"
                )
        if isinstance(self.outer, Composed):
            raise ValueError(
                "`outer` must not be composed itself; Composed(a, Composed(b, c)) is "
                f"the same, got {self.outer!r}"
            )
        if not self.outer.holds_floats:
            raise ValueError(
                "`outer` must leave float32 values to compress, but the payload of "
                f"{self.outer!r} has none"
            )
        if self.inner.stateful:
            raise ValueError(f"`inner` must have no memory, got {self.inner!r}")

    @property
    def stateful(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `outer` has memory."""
        return self.outer.stateful

    @property
    def random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether either takes a key."""
        return self.outer.random or self.inner.random

    @property
    def is_dense(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether both may be as large as the matrix."""
        return self.outer.is_dense and self.inner.is_dense

    @property
    def symmetric(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether both treat rows and columns alike."""
        return self.outer.symmetric and self.inner.symmetric

    @property
    def alpha_norm(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Every norm if it is so for both, else Frobenius."""
        norms = {self.outer.alpha_norm, self.inner.alpha_norm}
        return norms.pop() if len(norms) == 1 else "Frobenius"

    @property
    def holds_floats(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `inner` leaves floats."""
        return self.inner.holds_floats

    def alpha(self, shape):
        """What coding by `inner` leaves of the outer α."""
        floats = self._floats(shape)
        inner = min(self.inner.alpha(part.shape) for part in floats.values())
        return self.outer.coded_alpha(shape, inner)

    def init(self, shape):
        """The memory of `outer`."""
        return self.outer.init(shape)

    def _compress(self, x, state, key, arrives):
        del arrives
        shapes = self._floats(x.shape)
        keys = dict.fromkeys([None, *shapes])
        if key is not None:
            parts = jax.random.split(key, len(keys))
            keys = {name: parts[i] for i, name in enumerate(keys)}
        first = next(iter(shapes))

        def arriving(sent):
            payload = self.inner.compress(sent, key=keys[first])
            return self.inner.decompress(payload, sent.shape)

        payload, state = self.outer.compress_with(
            x, state, key=keys[None], arrives=arriving
        )
        for name in shapes:
            coded = self.inner.compress(payload[name], key=keys[name])
            payload = payload | {name: coded}
        return payload, state

    def _decompress(self, payload, shape):
        for name, part in self._floats(shape).items():
            floats = self.inner.decompress(payload[name], part.shape)
            payload = payload | {name: floats}
        return self.outer.decompress(payload, shape)

    def _poison(self, payload, finite):
        del finite  # the floats were poisoned before they were coded
        return payload

    def _floats(self, shape):
        """Names and shapes of the float32 matrices in the outer payload."""
        parts = self.outer.payload_shapes(shape)
        return {name: a for name, a in parts.items() if a.dtype == jnp.float32}
