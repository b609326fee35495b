"""What a program costs, counted in the program itself: FLOPs, bytes, collectives."""

from dropmuon_optax.counters.bytes import count_traced_bytes as count_traced_bytes
from dropmuon_optax.counters.bytes import count_wire_bytes as count_wire_bytes
from dropmuon_optax.counters.flops import count_flops as count_flops
from dropmuon_optax.counters.flops import count_primitives as count_primitives
