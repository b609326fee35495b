"""Samplings: which layers move at step k, as distributions over sets of layers."""

from dropmuon_optax.samplings.base import Sampling as Sampling
from dropmuon_optax.samplings.epoch_shift import EpochShift as EpochShift
from dropmuon_optax.samplings.epoch_shift import LinearShift as LinearShift
from dropmuon_optax.samplings.full import Full as Full
from dropmuon_optax.samplings.grown import Grown as Grown
from dropmuon_optax.samplings.host import active_layers as active_layers
from dropmuon_optax.samplings.host import present_layers as present_layers
from dropmuon_optax.samplings.independent import Independent as Independent
from dropmuon_optax.samplings.nice import Nice as Nice
from dropmuon_optax.samplings.nice import OneOf as OneOf
from dropmuon_optax.samplings.nice import cyclic_sets as cyclic_sets
from dropmuon_optax.samplings.periodic import Periodic as Periodic
from dropmuon_optax.samplings.progressive import Progressive as Progressive
from dropmuon_optax.samplings.round_robin import RoundRobin as RoundRobin
from dropmuon_optax.samplings.staged import Staged as Staged
from dropmuon_optax.samplings.stochastic_depth import StochasticDepth as StochasticDepth

__all__ = [
    "Sampling",
    "EpochShift",
    "LinearShift",
    "Full",
    "Grown",
    "active_layers",
    "present_layers",
    "Independent",
    "Nice",
    "OneOf",
    "cyclic_sets",
    "Periodic",
    "Progressive",
    "RoundRobin",
    "Staged",
    "StochasticDepth",
]


def __dir__() -> list[str]:
    """The public names alone."""
    return __all__
