"""Compressors of a layer's matrix: what is sent, what arrives, how much is lost."""

from dropmuon_optax.compressors.base import Compressor as Compressor
from dropmuon_optax.compressors.bfloat16 import BFloat16 as BFloat16
from dropmuon_optax.compressors.column_top_k import ColumnTopK as ColumnTopK
from dropmuon_optax.compressors.composed import Composed as Composed
from dropmuon_optax.compressors.damping import Damping as Damping
from dropmuon_optax.compressors.damping import Dropout as Dropout
from dropmuon_optax.compressors.identity import Identity as Identity
from dropmuon_optax.compressors.natural import Natural as Natural
from dropmuon_optax.compressors.rand_k import RandK as RandK
from dropmuon_optax.compressors.rank_k import RankK as RankK
from dropmuon_optax.compressors.scaled_sign import ScaledSign as ScaledSign
from dropmuon_optax.compressors.top_k import TopK as TopK

__all__ = [
    "Compressor",
    "BFloat16",
    "ColumnTopK",
    "Composed",
    "Damping",
    "Dropout",
    "Identity",
    "Natural",
    "RandK",
    "RankK",
    "ScaledSign",
    "TopK",
]


def __dir__() -> list[str]:
    """The public names alone."""
    return __all__
