"""The optimizers that benchmarks compare, by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers

import dropmuon_optax as dm
from benchmarks.models import cnn

# What Muon leaves to AdamW moves at this share of Muon's learning rate, in both Muons.
ADAM_SHARE = 0.1


class Entry(NamedTuple):
    """How to build an optimizer, and the peak learning rate it gets unless told."""

    build: Callable[[optax.Schedule], optax.GradientTransformation]
    learning_rate: float


def muon(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return dm.muon(
        learning_rate,
        cnn.muon_layers(),
        adam_learning_rate=lambda count: ADAM_SHARE * learning_rate(count),
    )


def scion(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return dm.scion(learning_rate, cnn.scion_layers())


def gluon(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return dm.gluon(learning_rate, cnn.scion_layers())


def optax_muon(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.contrib.muon(
        learning_rate,
        muon_weight_dimension_numbers=conv_dimensions,
        adam_learning_rate=lambda count: ADAM_SHARE * learning_rate(count),
    )


def conv_dimensions(params: Any) -> Any:
    """Tells Optax's Muon to see a kernel (H, W, I, O) as a matrix (H·W·I, O).

    Left alone it orthogonalizes only parameters with two axes. Biases and the head go
    to AdamW, as in `cnn.muon_layers`.
    """
    kernel = MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    return jax.tree.map(lambda leaf: kernel if leaf.ndim == 4 else None, params)


# The best of at least three values a factor of 2 apart, neither end of them;
# benchmarks/cnn/README.md says by which measure.
OPTIMIZERS = {
    "muon": Entry(muon, learning_rate=0.02),
    "scion": Entry(scion, learning_rate=0.02),
    "gluon": Entry(gluon, learning_rate=0.02),
    "optax_muon": Entry(optax_muon, learning_rate=0.02),
    "adamw": Entry(optax.adamw, learning_rate=0.004),
}
