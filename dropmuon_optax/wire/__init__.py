"""What is sent, and who owns it: stacks, messages, collectives over workers."""

from dropmuon_optax.wire.collectives import Axis as Axis
from dropmuon_optax.wire.collectives import local_params as local_params
from dropmuon_optax.wire.describe import describe_owners as describe_owners
from dropmuon_optax.wire.workers import check_replicated as check_replicated
from dropmuon_optax.wire.workers import inward as inward
from dropmuon_optax.wire.workers import worker_map as worker_map
from dropmuon_optax.wire.workers import worker_shardings as worker_shardings
