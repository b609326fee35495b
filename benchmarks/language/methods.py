"""The optimizers of language models by name."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers

import dropmuon_optax as dm
from benchmarks.language import dropped
from benchmarks.language.steps import Method, Model, compressed, plain

ADAM_B2 = 0.95  # Keller Jordan's for embedding and head; Optax's Muon would take 0.999


RADII = ("radius", "sign_radius")


class Entry(NamedTuple):
    """How to build a method, and the peak learning rate it gets unless told."""

    build: Callable[[Model], Method]
    learning_rate: float
    on_estimates: bool = False  # whether `Model.estimated` has to be there
    options: tuple[str, ...] = RADII  # of the command line: used


def muon(model: Model, rate: optax.Schedule, layers: Any = None) -> Any:
    """Ours, its Adam part as Optax's: so that matrices alone differ."""
    return dm.muon(
        rate,
        layers or muon_layers(model),
        adam_learning_rate=lambda count: model.adam_share * rate(count),
        adam_b2=ADAM_B2,
        adam_nesterov=True,
    )


def optax_muon(model: Model, rate: optax.Schedule) -> Any:
    return optax.contrib.muon(
        rate,
        muon_weight_dimension_numbers=matrix_axes,
        adam_learning_rate=lambda count: model.adam_share * rate(count),
        adam_b2=ADAM_B2,
    )


def on_theory(model: Model, rate: optax.Schedule) -> Any:
    """Gluon on radii by Theorem 1 at each step: the theory's learning rate is 1."""
    if model.estimated is None:
        raise ValueError("`model` must have measured radii, `estimated`, got None")
    return dm.gluon(rate, model.estimated)


def matrix_axes(params: Any) -> Any:
    """Tells Optax's Muon to see the last two axes of a block's kernels as a matrix."""

    def axes(path: Any, leaf: Array) -> MuonDimensionNumbers | None:
        if not jax.tree_util.keystr(path, simple=True).startswith("block"):
            return None
        return MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def muon_layers(model: Model) -> Any:
    """Muon's norm for the blocks' matrices, none (so AdamW) for embedding and head."""
    ends = ["embed"] if model.config.tied else ["embed", "head"]
    return dm.layers_by_path(
        order=None,
        geometry=[
            *((name, None, 1.0) for name in ends),
            ("kernel", dm.norms.muon_spectral(), 1.0),
        ],
        stacked="blocks" if model.scanned else None,
    )


# Where `sweep` starts from and `nanogpt` stays unless told: about the best for the
# preset `tiny` with a sign radius of 500.
OPTIMIZERS = {
    "muon": Entry(partial(plain, muon), 0.02, options=("adam_share",)),
    "scion": Entry(partial(plain, lambda m, rate: dm.scion(rate, m.layers)), 5e-4),
    "gluon": Entry(partial(plain, lambda m, rate: dm.gluon(rate, m.layers)), 5e-4),
    "gluon_theory": Entry(partial(plain, on_theory), 0.5, on_estimates=True),
    "drop_muon": Entry(partial(dropped.dropping, dropped.uniform), 5e-4),
    "drop_muon_staged": Entry(partial(dropped.dropping, dropped.staged), 5e-4),
    "drop_muon_grown": Entry(dropped.growing, 5e-4, options=(*RADII, "growth")),
    "drop_muon_depth": Entry(dropped.thinned, 5e-4, options=(*RADII, "keep")),
    "drop_bp": Entry(
        partial(dropped.dropping, dropped.some, around=True),
        5e-4,
        options=(*RADII, "keep"),
    ),
    "sign_muon": Entry(dropped.alternating, 5e-4, options=(*RADII, "outside_share")),
    "sign_muon_grown": Entry(
        partial(dropped.alternating, grows=True),
        5e-4,
        options=(*RADII, "growth", "outside_share"),
    ),
    "ef21_muon": Entry(compressed, 5e-4),
    "optax_muon": Entry(partial(plain, optax_muon), 0.02, options=("adam_share",)),
    "adamw": Entry(partial(plain, lambda m, rate: optax.adamw(rate)), 2e-3, options=()),
}
