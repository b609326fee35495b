"""Norms of a layer's matrix: value, dual norm, linear minimization oracle."""

from dropmuon_optax.norms.base import Norm as Norm
from dropmuon_optax.norms.column import Column as Column
from dropmuon_optax.norms.frobenius import Frobenius as Frobenius
from dropmuon_optax.norms.geometries import consistent_rms as consistent_rms
from dropmuon_optax.norms.geometries import muon_spectral as muon_spectral
from dropmuon_optax.norms.geometries import scion_bias as scion_bias
from dropmuon_optax.norms.geometries import scion_column as scion_column
from dropmuon_optax.norms.geometries import scion_conv as scion_conv
from dropmuon_optax.norms.geometries import scion_row as scion_row
from dropmuon_optax.norms.geometries import scion_sign as scion_sign
from dropmuon_optax.norms.geometries import scion_spectral as scion_spectral
from dropmuon_optax.norms.max_entry import MaxEntry as MaxEntry
from dropmuon_optax.norms.rms import RMS as RMS
from dropmuon_optax.norms.row import Row as Row
from dropmuon_optax.norms.scaled import LongSide as LongSide
from dropmuon_optax.norms.scaled import Monomial as Monomial
from dropmuon_optax.norms.scaled import Scaled as Scaled
from dropmuon_optax.norms.scaled import unscaled as unscaled
from dropmuon_optax.norms.spectral import Spectral as Spectral

__all__ = [
    "Norm",
    "Column",
    "Frobenius",
    "consistent_rms",
    "muon_spectral",
    "scion_bias",
    "scion_column",
    "scion_conv",
    "scion_row",
    "scion_sign",
    "scion_spectral",
    "MaxEntry",
    "RMS",
    "Row",
    "LongSide",
    "Monomial",
    "Scaled",
    "unscaled",
    "Spectral",
]


def __dir__() -> list[str]:
    """The public names alone."""
    return __all__
