"""Rounding to bfloat16: half the bytes, hardly a loss."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from dropmuon_optax.compressors.base import Compressor, Payload, Shape, State
from dropmuon_optax.linalg import saturate


@final
@dataclasses.dataclass(frozen=True, repr=False)
class BFloat16(Compressor):
    """Every entry rounded to bfloat16, 16 bits each.

    α = 1 − 2⁻¹⁶ in every norm of absolute values (Frobenius, largest entry): an entry's
    relative error is at most 2⁻⁸. What would round up to infinity goes to the largest
    finite one. They are sent as integers, since compilers widen narrow floats on their
    way.

    Examples:
      >>> c = BFloat16()
      >>> c.decompress(c.compress(jnp.array([[1.0, 0.1]])), (1, 2))
      Array([[1.        , 0.10009766]], dtype=float32)
    """

    holds_floats: ClassVar[bool] = False
    symmetric: ClassVar[bool] = True

    def alpha(self, shape: Shape) -> float:
        """1 − 2⁻¹⁶, whatever the shape."""
        del shape
        return 1 - 2.0**-16

    def _compress(
        self, x: Float32[Array, "m n"], state: State, key: Any, arrives: Callable
    ) -> tuple[Payload, State]:
        del key, arrives
        nearest = x.astype(jnp.bfloat16)
        nearest = jnp.where(jnp.isfinite(x), saturate(nearest), nearest)
        bits = jax.lax.bitcast_convert_type(nearest, jnp.uint16)
        return {"bits": bits}, state

    def _decompress(self, payload: Payload, shape: Shape) -> Float32[Array, "m n"]:
        del shape
        values = jax.lax.bitcast_convert_type(payload["bits"], jnp.bfloat16)
        return values.astype(jnp.float32)
