"""Gradients of the layers that move, without the work for those that don't."""

from dropmuon_optax.backprop.features import cache_features as cache_features
from dropmuon_optax.backprop.gradients import value_and_grad as value_and_grad
from dropmuon_optax.backprop.scan import drop_backward as drop_backward
from dropmuon_optax.backprop.scan import scan_layers as scan_layers
