"""Linear algebra by matrix products: the polar factor, and the range."""

from dropmuon_optax.linalg.coefficients import CANS as CANS
from dropmuon_optax.linalg.coefficients import DEEPSEEK_V4 as DEEPSEEK_V4
from dropmuon_optax.linalg.coefficients import KELLER_JORDAN as KELLER_JORDAN
from dropmuon_optax.linalg.coefficients import NEWTON_SCHULZ as NEWTON_SCHULZ
from dropmuon_optax.linalg.coefficients import POLAR_EXPRESS as POLAR_EXPRESS
from dropmuon_optax.linalg.coefficients import (
    POLAR_EXPRESS_MODDED as POLAR_EXPRESS_MODDED,
)
from dropmuon_optax.linalg.coefficients import YOU_JIACHENG as YOU_JIACHENG
from dropmuon_optax.linalg.coefficients import Coefficients as Coefficients
from dropmuon_optax.linalg.gram import gram_newton_schulz as gram_newton_schulz
from dropmuon_optax.linalg.mapping import one_by_one as one_by_one
from dropmuon_optax.linalg.orthogonalize import newton_schulz as newton_schulz
from dropmuon_optax.linalg.orthogonalize import polar_factor as polar_factor
from dropmuon_optax.linalg.power_iteration import least_squares as least_squares
from dropmuon_optax.linalg.power_iteration import power_iteration as power_iteration
from dropmuon_optax.linalg.scaling import l2_direction as l2_direction
from dropmuon_optax.linalg.scaling import l2_norm as l2_norm
from dropmuon_optax.linalg.scaling import nan_unless_finite as nan_unless_finite
from dropmuon_optax.linalg.scaling import ranged_dtype as ranged_dtype
from dropmuon_optax.linalg.scaling import saturate as saturate
from dropmuon_optax.linalg.scaling import unit_scale as unit_scale
from dropmuon_optax.linalg.scaling import wide_dtype as wide_dtype

__all__ = [
    "CANS",
    "DEEPSEEK_V4",
    "KELLER_JORDAN",
    "NEWTON_SCHULZ",
    "POLAR_EXPRESS",
    "POLAR_EXPRESS_MODDED",
    "YOU_JIACHENG",
    "Coefficients",
    "gram_newton_schulz",
    "one_by_one",
    "newton_schulz",
    "polar_factor",
    "least_squares",
    "power_iteration",
    "l2_direction",
    "l2_norm",
    "nan_unless_finite",
    "saturate",
    "unit_scale",
    "wide_dtype",
    "ranged_dtype",
]


def __dir__() -> list[str]:
    """The public names alone."""
    return __all__
