"""What a leaf is: its layer, its norm and radius, its view as matrices.

A name that means something stands in `names`, the norm of a role in `geometry`, a view
in `views`, which compressor a leaf gets in `rules`.
"""

from dropmuon_optax.layers.by_path import layers_by_path as layers_by_path
from dropmuon_optax.layers.describe import describe as describe
from dropmuon_optax.layers.geometry import ball_geometry as ball_geometry
from dropmuon_optax.layers.geometry import muon_geometry as muon_geometry
from dropmuon_optax.layers.geometry import scion_geometry as scion_geometry
from dropmuon_optax.layers.layouts import NameRule as NameRule
from dropmuon_optax.layers.leaves import AdaptiveRadius as AdaptiveRadius
from dropmuon_optax.layers.leaves import Layer as Layer
from dropmuon_optax.layers.leaves import LayersFn as LayersFn
from dropmuon_optax.layers.leaves import Stacked as Stacked
from dropmuon_optax.layers.leaves import count_layers as count_layers
from dropmuon_optax.layers.names import NAME_RULES as NAME_RULES
from dropmuon_optax.layers.readings import Reading as Reading
from dropmuon_optax.layers.readings import read as read
from dropmuon_optax.layers.views import View as View
