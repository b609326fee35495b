"""The optimizers that benchmarks compare, by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers


class Entry(NamedTuple):
    """How to build an optimizer, and the peak learning rate it gets unless told."""

    build: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
    learning_rate: float


def conv_dimensions(params: Any) -> Any:
    """Tells Optax's Muon to see a kernel (H, W, I, O) as a matrix (H·W·I, O).

    Left alone it orthogonalizes only parameters with two axes. The head and the
    biases go to Adam, as in our Muon.
    """

    def dimensions(path, leaf) -> MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim < 2 or name.startswith("head"):
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def optax_muon(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.contrib.muon(
        learning_rate, muon_weight_dimension_numbers=conv_dimensions
    )


OPTIMIZERS = {
    "optax_muon": Entry(optax_muon, learning_rate=0.02),
    "adamw": Entry(optax.adamw, learning_rate=0.002),
}
