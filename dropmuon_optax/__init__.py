"""Layer-wise LMO optimizers for Optax: Muon, Scion, Gluon, Drop-Muon, EF21-Muon.

>>> import jax.numpy as jnp
>>> import dropmuon_optax as dm
>>> params = {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.zeros(8)}}
>>> tx = dm.muon(learning_rate=0.02)
>>> state = tx.init(params)

Optimizers
    muon                          Muon for matrices, AdamW for the rest
    scion                         Scion, constrained to balls or not
    gluon                         LMO steps in any norms, the general form
    drop_muon                     Gluon's steps on a random set of layers
    drop_layers                   any transformation on a random set of layers
    ef21_muon                     LMO steps on gradients sent compressed
    ef21                          the same around any direction
    ef21_muon_eval_params         the iterate X: evaluate there
    ef21_muon_horizon             its theorem's learning rate and momentum
    init_on_ball                  first weights on Scion's balls
    scale_by_lmo                  updates become minus their LMOs
    scale_by_momentum             the moving average of Gluon
    gluon_learning_rate_schedule  Gluon's stochastic rule: radius
    gluon_momentum_schedule       Gluon's stochastic rule: momentum
    value_and_grad                gradients of the layers that move alone
    scan_layers                   a scan over blocks of which some move
    drop_backward                 a block whose branch no gradient enters
    cache_features                a prefix that rests, run once a sample
    zero_outputs                  outputs of absent layers, set to zero

Layers: what a leaf is
    layers_by_path                layers, norms and radii by regular expressions
    describe                      prints what goes where
    count_layers                  the number of layers
    Layer                         layer, norm, radius and view of a leaf
    Stacked                       the same for a leaf with an axis over layers
    View                          a leaf as matrices
    AdaptiveRadius                Gluon's adaptive radius
    muon_geometry                 norms by name and shape, as Muon has them
    scion_geometry                the same as Scion has them
    ball_geometry                 the same with radii that constrain
    NAME_RULES                    the names that mean something

Nouns, a namespace each
    norms                         Spectral, Frobenius, RMS, ..., scion_conv, ...
    samplings                     Progressive, Staged, Nice, ...: who moves when
    compressors                   TopK, RankK, Natural, ...: what is sent
    linalg                        Newton-Schulz, its coefficients, the polar factor

Samplings on the host
    active_layers                 the layers that move at a step
    present_layers                the layers that are run at a step

Workers
    worker_map                    runs a step on every worker
    worker_shardings              where the optimizer's state lies
    describe_owners               prints who owns what, and how letters fill
    local_params                  parameters as each worker's own

Theory
    measure_smoothness            between two points, on one batch
    track_smoothness              between consecutive steps
    SmoothnessPoints              what was measured
    fit_smoothness                the fit of L0 and L1
    SmoothnessFit                 a matrix's fit and verdict
    report_smoothness             prints the fits
    estimated_layers              layers with the radii of the fits
    measure_costs                 times a step at each cutoff
    StepCost                      a step's cost by layers
    optimal_probabilities         cutoffs by cost and smoothness

Counters
    count_flops                   operations of a compiled function
    count_wire_bytes              bytes that a compiled program sends
    count_traced_bytes            bytes that a function asks to be sent
"""

from dropmuon_optax import compressors as compressors
from dropmuon_optax import linalg as linalg
from dropmuon_optax import norms as norms
from dropmuon_optax import samplings as samplings
from dropmuon_optax.algorithms.drop_layers import drop_layers as drop_layers
from dropmuon_optax.algorithms.drop_layers import zero_outputs as zero_outputs
from dropmuon_optax.algorithms.drop_muon import drop_muon as drop_muon
from dropmuon_optax.algorithms.ef21 import ef21 as ef21
from dropmuon_optax.algorithms.ef21_muon import ef21_muon as ef21_muon
from dropmuon_optax.algorithms.ef21_muon import (
    ef21_muon_eval_params as ef21_muon_eval_params,
)
from dropmuon_optax.algorithms.ef21_muon import ef21_muon_horizon as ef21_muon_horizon
from dropmuon_optax.algorithms.gluon import gluon as gluon
from dropmuon_optax.algorithms.gluon import (
    gluon_learning_rate_schedule as gluon_learning_rate_schedule,
)
from dropmuon_optax.algorithms.gluon import (
    gluon_momentum_schedule as gluon_momentum_schedule,
)
from dropmuon_optax.algorithms.gluon import scale_by_momentum as scale_by_momentum
from dropmuon_optax.algorithms.muon import muon as muon
from dropmuon_optax.algorithms.scion import init_on_ball as init_on_ball
from dropmuon_optax.algorithms.scion import scion as scion
from dropmuon_optax.backprop import cache_features as cache_features
from dropmuon_optax.backprop import drop_backward as drop_backward
from dropmuon_optax.backprop import scan_layers as scan_layers
from dropmuon_optax.backprop import value_and_grad as value_and_grad
from dropmuon_optax.counters import count_flops as count_flops
from dropmuon_optax.counters import count_traced_bytes as count_traced_bytes
from dropmuon_optax.counters import count_wire_bytes as count_wire_bytes
from dropmuon_optax.layers import NAME_RULES as NAME_RULES
from dropmuon_optax.layers import AdaptiveRadius as AdaptiveRadius
from dropmuon_optax.layers import Layer as Layer
from dropmuon_optax.layers import Stacked as Stacked
from dropmuon_optax.layers import View as View
from dropmuon_optax.layers import ball_geometry as ball_geometry
from dropmuon_optax.layers import count_layers as count_layers
from dropmuon_optax.layers import describe as describe
from dropmuon_optax.layers import layers_by_path as layers_by_path
from dropmuon_optax.layers import muon_geometry as muon_geometry
from dropmuon_optax.layers import scion_geometry as scion_geometry
from dropmuon_optax.lmo import scale_by_lmo as scale_by_lmo
from dropmuon_optax.samplings import active_layers as active_layers
from dropmuon_optax.samplings import present_layers as present_layers
from dropmuon_optax.theory.cost import StepCost as StepCost
from dropmuon_optax.theory.cost import measure_costs as measure_costs
from dropmuon_optax.theory.cost import optimal_probabilities as optimal_probabilities
from dropmuon_optax.theory.estimates import SmoothnessFit as SmoothnessFit
from dropmuon_optax.theory.estimates import fit_smoothness as fit_smoothness
from dropmuon_optax.theory.estimates import report_smoothness as report_smoothness
from dropmuon_optax.theory.radii import estimated_layers as estimated_layers
from dropmuon_optax.theory.smoothness import SmoothnessPoints as SmoothnessPoints
from dropmuon_optax.theory.smoothness import measure_smoothness as measure_smoothness
from dropmuon_optax.theory.smoothness import track_smoothness as track_smoothness
from dropmuon_optax.wire import describe_owners as describe_owners
from dropmuon_optax.wire import local_params as local_params
from dropmuon_optax.wire import worker_map as worker_map
from dropmuon_optax.wire import worker_shardings as worker_shardings

__version__ = "0.1.0"  # the only place that says so

__all__ = [
    "muon",
    "scion",
    "gluon",
    "drop_muon",
    "drop_layers",
    "ef21_muon",
    "ef21",
    "ef21_muon_eval_params",
    "ef21_muon_horizon",
    "init_on_ball",
    "scale_by_lmo",
    "scale_by_momentum",
    "gluon_learning_rate_schedule",
    "gluon_momentum_schedule",
    "value_and_grad",
    "scan_layers",
    "drop_backward",
    "cache_features",
    "zero_outputs",
    "layers_by_path",
    "describe",
    "count_layers",
    "Layer",
    "Stacked",
    "View",
    "AdaptiveRadius",
    "muon_geometry",
    "scion_geometry",
    "ball_geometry",
    "NAME_RULES",
    "norms",
    "samplings",
    "compressors",
    "linalg",
    "active_layers",
    "present_layers",
    "worker_map",
    "worker_shardings",
    "describe_owners",
    "local_params",
    "measure_smoothness",
    "track_smoothness",
    "SmoothnessPoints",
    "fit_smoothness",
    "SmoothnessFit",
    "report_smoothness",
    "estimated_layers",
    "measure_costs",
    "StepCost",
    "optimal_probabilities",
    "count_flops",
    "count_wire_bytes",
    "count_traced_bytes",
    "__version__",
]


def __dir__() -> list[str]:
    """The public names alone, without the submodules that are not meant."""
    return __all__
