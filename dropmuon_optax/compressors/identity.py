"""The identity: everything is sent."""

import dataclasses
from typing import ClassVar, final

from dropmuon_optax.compressors.base import Compressor


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Identity(Compressor):
    """The identity C(x) = x, rounded to float32, with α = 1 in every norm.

    Payload: `values`, float32 of shape (m, n), as large as the matrix.

    Examples:
      >>> Identity().alpha((8, 8)), Identity().num_bits((8, 8))
      (1.0, 2048)
    """

    alpha_norm: ClassVar[str] = "every"
    is_dense: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True

    def alpha(self, shape):
        """1: nothing is lost."""
        del shape
        return 1.0

    def _compress(self, x, state, key, arrives):
        del key, arrives
        return {"values": x}, state

    def _decompress(self, payload, shape):
        del shape
        return payload["values"]
