"""Bytes that a program sends to other devices, counted in the program itself.

`count_wire_bytes` reads the compiled program, where compilers merge, move, drop and
widen collectives; `count_traced_bytes` reads what was asked for. Where they differ, the
compiler did something: XLA for CPUs sends bfloat16 as float32, for one.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from dropmuon_optax.counters import flops, hlo, traffic
from dropmuon_optax.counters.traffic import WireBytes

# Primitives that send, and what they are compiled to. Casts (`pcast`) send nothing.
_KINDS = {
    **dict.fromkeys(("psum", "psum_invariant", "unreduced_psum"), "all-reduce"),
    **dict.fromkeys(("pmax", "pmin"), "all-reduce"),
    **dict.fromkeys(
        ("all_gather", "all_gather_invariant", "all_gather_reduced"), "all-gather"
    ),
    **dict.fromkeys(("reduce_scatter", "unreduced_reduce_scatter"), "reduce-scatter"),
    "all_to_all": "all-to-all",
    "ppermute": "collective-permute",
    "pbroadcast": "collective-broadcast",
    **dict.fromkeys(("ragged_all_to_all", "psend"), "other"),
}
_SIMULATED = re.compile(rf"\b{traffic.SIMULATED}(\d+)")
_UNKNOWN_KINDS = re.compile(r"(all|collective|ragged)-|send$")


def count_wire_bytes(compiled: Any) -> WireBytes:
    """Bytes that a compiled program sends to other devices, per device and call.

    Asynchronous forms, collectives of tuples, loops with a known number of trips,
    nested calls, groups along any mesh axis are understood; what is not, is named in
    `unattributed`. What custom kernels send on their own is not seen. The bytes are
    those of the algorithms in `traffic`: a backend may choose others. A simulation by
    `worker_map` without a mesh sends nothing, and is counted as inf: see
    `count_traced_bytes` for what its workers would send.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns.

    Returns:
      The sum, `total`, with its parts.

    Raises:
      ValueError: if `compiled` is something else, or its text can't be had.

    Examples:
      >>> import jax.numpy as jnp
      >>> compiled = jax.jit(lambda x: 2.0 * x).lower(jnp.ones(3)).compile()
      >>> assert count_wire_bytes(compiled).total <= 1_000_000
      >>> print(count_wire_bytes(compiled))
      kind   places  runs  bytes sent
      total       0     0           0
    """
    if not isinstance(compiled, jax.stages.Compiled):
        raise ValueError(
            "`compiled` must be what `jax.jit(f).lower(...).compile()` returns, got "
            f"{type(compiled).__module__}.{type(compiled).__name__}"
        )
    text = compiled.as_text()
    if not text:
        raise ValueError("`compiled` must be able to print its program, got nothing")
    return parse(text)


def parse(text: str) -> WireBytes:
    """`count_wire_bytes` of a program's text."""
    program = hlo.read(text)

    @functools.cache
    def computation(name: str) -> WireBytes:
        return traffic.together(map(instruction, program.computations.get(name, [])))

    def instruction(line: hlo.Instruction) -> WireBytes:
        opcode = line.opcode
        kind = opcode.removesuffix("-start")
        if opcode.endswith(("-done", "-update")):
            return WireBytes()
        if opcode == "while":
            body, condition, trips = hlo.loop(line)
            after = None if trips is None else trips + 1
            found = traffic.repeated(computation(condition), after, line.name)
            return traffic.together(
                [traffic.repeated(computation(body), trips, line.name), found]
            )
        if opcode == "conditional":
            return traffic.largest(map(computation, hlo.branches(line)), line.name)
        if kind in traffic.KINDS:
            outputs, n = hlo.outputs(line), hlo.group_size(line, program)
            dtypes = [array.dtype for array in outputs]
            size = sum(array.num_bytes for array in outputs)
            return traffic.collective(kind, dtypes, size, n, line.name)
        if (
            _UNKNOWN_KINDS.match(kind)
            and "is_host_transfer=true" not in line.attributes
        ):
            dtypes = [array.dtype for array in hlo.outputs(line)]
            return traffic.collective(kind, dtypes, 0, None, line.name)
        return traffic.together(map(computation, hlo.called(line)))

    return traffic.together([computation(program.entry), _simulation([text])])


def _simulation(texts: Iterable[str]) -> WireBytes:
    """One note, and inf, if any of the texts names a scope of simulated workers."""
    found = (_SIMULATED.search(text) for text in texts)
    numbers = [int(match[1]) for match in found if match]
    return traffic.simulation(max(numbers)) if numbers else WireBytes()


def count_traced_bytes(function: Callable[..., Any], *args: Any) -> WireBytes:
    """Bytes that `function(*args)` asks to be sent, per device and call.

    A walk over the traced program, before any compiler: it sees the collectives that
    `shard_map` and differentiation wrote, none that a partitioner adds for arrays laid
    out over Auto or Explicit axes. Entries narrower than a byte count as one.

    Args:
      function: a function of arrays, jitted or not.
      *args: its arguments, or `jax.ShapeDtypeStruct`s of their shapes.

    Returns:
      As `count_wire_bytes`.

    Examples:
      >>> import jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
      >>> f = jax.shard_map(
      ...     lambda x: jax.lax.all_gather(x, "data"),
      ...     mesh=mesh, in_specs=jax.P(), out_specs=jax.P("data"),
      ... )
      >>> count_traced_bytes(f, jnp.ones(3)).by_kind  # to itself alone
      {'all-gather': 0}

      What four workers would send, counted on any machine: over an abstract mesh.

      >>> import dropmuon_optax as dm
      >>> params = {"kernel": jnp.eye(64)}
      >>> tx = dm.ef21_muon(
      ...     0.1, dm.layers_by_path(None), dm.compressors.TopK(0.1), num_workers=4,
      ...     key=jax.random.key(0),
      ... )
      >>> state = jax.eval_shape(tx.init, params)
      >>> step = lambda params, state, g: tx.update(g, state, params)
      >>> mesh = jax.sharding.AbstractMesh((4,), ("data",))
      >>> real = dm.worker_map(step, "data", state, mesh)
      >>> g = {"kernel": jnp.ones((4 * 64, 64))}  # each worker's, one below the other
      >>> count_traced_bytes(real, params, state, g).total
      55272
      >>> simulated = dm.worker_map(step, "data", state)
      >>> count_traced_bytes(simulated, params, state, g).total
      inf
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return traffic.together([_walk(jaxpr, {}), _simulation(_scopes(jaxpr))])


def _scopes(jaxpr: Any) -> Iterator[str]:
    """The names of the scopes of all equations."""
    for eqn in jaxpr.eqns:
        yield str(eqn.source_info.name_stack)
        for inner in flops.inner_jaxprs(eqn):
            yield from _scopes(inner)


def _walk(jaxpr: Any, sizes: dict[Any, int]) -> WireBytes:
    """The bytes of a jaxpr inside mesh axes of these sizes."""

    def equation(eqn: Any) -> WireBytes:
        name = eqn.primitive.name
        kind = _KINDS.get(name.removesuffix("_start"))
        inside = dict(sizes)
        if "mesh" in eqn.params:
            inside |= eqn.params["mesh"].shape
        parts = [_walk(inner, inside) for inner in flops.inner_jaxprs(eqn)]
        if kind is not None:
            return _traced(kind, eqn, sizes)
        if name == "scan":
            return traffic.repeated(traffic.together(parts), eqn.params["length"], name)
        if name == "while":
            return traffic.repeated(traffic.together(parts), None, name)
        return (
            traffic.largest(parts, name) if name == "cond" else traffic.together(parts)
        )

    return traffic.together(map(equation, jaxpr.eqns))


def _traced(kind: str, eqn: Any, sizes: dict[Any, int]) -> WireBytes:
    """One collective primitive; sizes are read off its inputs."""
    name, params = eqn.primitive.name, eqn.params
    size = sum(x.aval.size * x.aval.dtype.itemsize for x in eqn.invars)
    dtypes = [_compiled_dtype(x.aval.dtype.name) for x in eqn.invars]
    axes = params.get("axes", params.get("axis_name", ()))
    axes = axes if isinstance(axes, tuple) else (axes,)
    groups = params.get("axis_index_groups")
    n = max(map(len, groups)) if groups else None
    if not groups and all(axis in sizes for axis in axes):
        n = math.prod(sizes[axis] for axis in axes)
    if kind == "collective-permute":
        n = 2 if any(a != b for a, b in params["perm"]) else 1
    if kind == "all-gather":
        size *= n or 1
    if kind == "reduce-scatter":
        size //= n or 1
    if kind == "other":
        n = None
    return traffic.collective(name if kind == "other" else kind, dtypes, size, n, name)


def _compiled_dtype(name: str) -> str:
    """What HLO calls a dtype: float32 is f32, int8 is s8, float8_e5m2 is f8e5m2."""
    name = name.replace("bool", "pred").replace("_", "")
    name = name.replace("uint", "u").replace("int", "s").replace("complex", "c")
    return name.replace("float", "f")
