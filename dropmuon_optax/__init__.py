"""Layer-wise LMO optimizers for Optax: Muon, Scion, Gluon, Drop-Muon, EF21-Muon.

>>> import jax.numpy as jnp
>>> import dropmuon_optax as dm
>>> params = {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.zeros(8)}}
>>> tx = dm.muon(learning_rate=0.02)
>>> state = tx.init(params)
"""

from dropmuon_optax import compressors as compressors
from dropmuon_optax import linalg as linalg
from dropmuon_optax import norms as norms
from dropmuon_optax import samplings as samplings
from dropmuon_optax.algorithms.drop_muon import drop_layers as drop_layers
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

__version__ = "0.1.0"
