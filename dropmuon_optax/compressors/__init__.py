"""Compressors of a layer's matrix: what is sent, what arrives, how much is lost."""

from dropmuon_optax.compressors.base import Compressor as Compressor
from dropmuon_optax.compressors.identity import Identity as Identity
from dropmuon_optax.compressors.natural import Natural as Natural
from dropmuon_optax.compressors.top_k import TopK as TopK
