"""Eight devices: what is sharded moves as if it were not, and stays sharded."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import (
    SHAPES,
    Case,
    apply,
    assert_close,
    case_named,
    every_case,
    jit,
    run,
    some_cases,
    types,
)
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dropmuon_optax as dm

EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto

MESHES = {
    "8-explicit": ((8,), (EXPLICIT,)),
    "8-auto": ((8,), (AUTO,)),
    "4x2-explicit": ((4, 2), (EXPLICIT, EXPLICIT)),
    "4x2-auto": ((4, 2), (AUTO, AUTO)),
    "4x2-mixed": ((4, 2), (EXPLICIT, AUTO)),
}

# A layout for each leaf; the axis y is dropped where the mesh has none.
LAYOUT = {
    "embed": {"embedding": ("x", None)},
    "block_0": {"kernel": ("x", "y"), "bias": ("x",)},
    "block_1": {"kernel": (None, "x"), "bias": ("y",)},
    "conv": {"kernel": (None, None, None, "x")},
    "wide": {"kernel": ("x", None)},
    "head": {"kernel": ("y", "x")},
}
assert jax.tree.structure(
    LAYOUT, is_leaf=lambda s: isinstance(s, tuple)
) == jax.tree.structure(SHAPES, is_leaf=lambda s: isinstance(s, tuple))

# The programs of the others are parts of these.
algorithms = some_cases("gluon-decayed", "muon-decayed")


def make_mesh(name: str) -> jax.sharding.Mesh:
    sides, kinds = MESHES[name]
    return jax.make_mesh(sides, ("x", "y")[: len(sides)], axis_types=kinds)


def shard(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    def put(axes: tuple[str | None, ...], x: Any) -> Any:
        spec = P(*[axis if axis in mesh.axis_names else None for axis in axes])
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(put, LAYOUT, tree, is_leaf=lambda s: isinstance(s, tuple))


def layouts(tree: Any) -> list[Any]:
    """How the leaves really lie on the devices, whatever their types say."""
    return [
        leaf.sharding.shard_shape(leaf.shape)
        for leaf in jax.tree.leaves(tree)
        if leaf.ndim
    ]


def step_of(case: Case) -> Any:
    tx = case.build()

    def step(g: Any, state: Any, params: Any) -> tuple[Any, Any, Any]:
        updates, state = tx.update(g, state, params)
        return updates, state, optax.apply_updates(params, updates)

    return step


@functools.cache
def jitted_step(name: str, mesh_name: str) -> Any:
    del mesh_name  # one cache of compiled programs for each mesh
    return jit(step_of(case_named(name)))


def texts(tree: Any) -> list[str]:
    """Shape, dtype and sharding of every leaf, with no word about the mesh.

    A scalar made outside of a mesh's context has an empty mesh in its type.
    """
    return [str(kind) for kind in types(tree)]


def check(case: Case, mesh: Any, step: Any, num_steps: int = 2) -> None:
    """Some sharded steps equal the replicated ones, and nothing changes its type."""
    loop = run(case.name, "float32")
    params = shard(loop.params[0], mesh)
    state = case.build().init(params)
    in_context = not jax.sharding.get_abstract_mesh().empty
    kinds = types if in_context else texts
    for k, g in enumerate(loop.grads[:num_steps]):
        updates, after, moved = step(shard(g, mesh), state, params)
        assert kinds(updates) == kinds(moved) == kinds(params)
        assert kinds(after) == kinds(state)
        assert layouts(moved) == layouts(params)
        assert layouts(after) == layouts(state)
        assert_close(jax.device_get(updates), jax.device_get(loop.updates[k]))
        params, state = moved, after
    assert_close(jax.device_get(state), jax.device_get(loop.states[num_steps]))


@every_case
def test_sharded_equals_replicated(case: Case):
    mesh_name = "4x2-explicit"
    if case.name == "ef21_muon":
        with pytest.raises(ValueError, match="`params` must be replicated"):
            check(case, make_mesh(mesh_name), None)
        return
    check(case, make_mesh(mesh_name), jitted_step(case.name, mesh_name))


@pytest.mark.parametrize(
    "mesh_name", [name for name in MESHES if name != "4x2-explicit"]
)
@algorithms
def test_sharded_equals_replicated_on_more_meshes(case: Case, mesh_name: str):
    check(case, make_mesh(mesh_name), jitted_step(case.name, mesh_name))


@some_cases("gluon", "scion-unconstrained")
def test_weights_without_decay_stay_sharded_on_an_auto_mesh(case: Case):
    # With decay, the layout of the weights reaches the updates through the sum.
    check(case, make_mesh("8-auto"), jitted_step(case.name, "8-auto"))


@pytest.mark.parametrize("mesh_name", ["4x2-explicit", "4x2-auto"])
@algorithms
def test_sharded_equals_replicated_in_a_context(case: Case, mesh_name: str):
    mesh = make_mesh(mesh_name)
    with jax.set_mesh(mesh):
        check(case, mesh, jit(step_of(case)))


@some_cases("muon-decayed")
def test_eager_steps_in_the_context_of_an_explicit_mesh(case: Case):
    mesh = make_mesh("4x2-explicit")
    with jax.set_mesh(mesh):
        check(case, mesh, step_of(case), num_steps=1)


@some_cases("gluon-decayed")
def test_eager_steps_without_the_context_of_an_explicit_mesh(case: Case):
    check(case, make_mesh("4x2-explicit"), step_of(case), num_steps=1)


COLLECTIVES = re.compile(
    r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)
CALLED = re.compile(r"\b(?:calls|body|condition|to_apply)=%([\w.\-]+)")
PRODUCTS = re.compile(r"\b(dot|convolution)\(|custom_call_target=\"__(onednn|cublas)")


def between_products(text: str) -> tuple[int, list[str]]:
    """The number of matrix products, and the collectives between two of them.

    A collective is between two if its operands come from a product, by whatever way,
    and a product's operands from it. Whole computations that an instruction calls
    (fusions, loops) count as the instruction.
    """
    calls = computations(text)
    entry = next(body for name, body in calls.items() if f"ENTRY %{name} " in text)

    def stands(pattern: re.Pattern, line: str) -> bool:
        names = CALLED.findall(line)
        return bool(pattern.search(line)) or any(
            stands(pattern, calls[n]) for n in names
        )

    after, waiting, guilty, num_products = set(), {}, [], 0
    for line in entry.splitlines():
        head = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
        if not head:
            continue
        name, names = head[1], re.findall(r"%([\w.\-]+)", line[head.end() :])
        line = line[head.end() :]
        product, collective = stands(PRODUCTS, line), stands(COLLECTIVES, line)
        num_products += product
        before = set().union(*[waiting.get(n, set()) for n in names])
        if product:
            guilty += sorted(before)
        if collective and (product or any(n in after for n in names)):
            before = before | {name}
            guilty += [name] if product else []
        waiting[name] = before
        if product or any(n in after for n in names):
            after.add(name)
    return num_products, guilty


def computations(text: str) -> dict[str, str]:
    """The computations of a compiled program by name."""
    blocks = re.split(r"\n(?=\S)", text)
    heads = [re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", block) for block in blocks]
    return {
        head[1]: block.partition("\n")[2]
        for head, block in zip(heads, blocks, strict=True)
        if head
    }


@pytest.mark.parametrize("mesh_name", MESHES)
@algorithms
def test_no_collective_between_the_products_of_an_oracle(case: Case, mesh_name: str):
    mesh = make_mesh(mesh_name)
    params = shard(run(case.name, "float32").params[0], mesh)
    args = (params, case.build().init(params), params)
    program = jitted_step(case.name, mesh_name).lower(*args).compile()
    num_products, guilty = between_products(program.as_text())
    assert num_products >= 3 * 15  # the square, the wide and the convolution's
    assert not guilty


def test_the_search_for_collectives_finds_them():
    mesh = make_mesh("4x2-auto")
    x = jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, P("x", "y")))

    def power(x: Any) -> Any:
        return jax.lax.fori_loop(0, 5, lambda _, y: y @ y.T, x)

    def cube(x: Any) -> Any:
        return x @ x.T @ x

    for function, least in ((power, 1), (cube, 2)):
        text = jit(function).lower(x).compile().as_text()
        num_products, guilty = between_products(text)
        assert num_products >= least
        assert guilty


SPECS = [P("x", None), P(None, "x"), P(None, None)]


@pytest.mark.parametrize("shape", [(32, 32), (32, 128), (128, 32)], ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("mesh_name", ["8-explicit", "8-auto"])
def test_each_device_does_its_share_of_the_oracle(mesh_name: str, spec: P, shape: Any):
    mesh = make_mesh(mesh_name)
    rng = np.random.default_rng(0)
    grads = [jnp.asarray(rng.normal(size=shape), "float32") for _ in range(16)]
    norm = dm.norms.muon_spectral()
    tx = dm.scale_by_lmo(lambda tree: [dm.Layer(0, norm) for _ in tree])

    def flops(grads: Any) -> tuple[float, Any]:
        step = jit(lambda g: tx.update(g, tx.init(g))[0])
        program = step.lower(grads).compile()
        text = program.as_text()
        assert not between_products(text)[1]
        return program.cost_analysis()["flops"], program(grads)

    whole, expected = flops(grads)
    sharded = jax.device_put(grads, NamedSharding(mesh, spec))
    own, found = flops(sharded)
    assert own <= 1.1 * whole / 8  # a tenth for the arithmetic of layouts
    for a, b, g in zip(found, expected, sharded, strict=True):
        assert a.sharding.is_equivalent_to(g.sharding, 2) or "auto" in mesh_name
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@every_case
def test_replicated_inside_shard_map(case: Case):
    mesh, loop = make_mesh("8-explicit"), run(case.name, "float32")

    def mean_step(params: Any, state: Any, noisy: Any) -> Any:
        g = jax.lax.pmean(jax.tree.map(lambda x: x[0], noisy), "x")
        return apply(loop.tx, params, state, g)

    step = jax.shard_map(
        mean_step, mesh=mesh, in_specs=(P(), P(), P("x")), out_specs=P()
    )
    # Eight workers' gradients with a known mean.
    offsets = np.arange(8, dtype=np.float32) - 3.5
    noisy = jax.tree.map(
        lambda g: jnp.stack([g + float(d) for d in offsets]), loop.grads[0]
    )
    noisy = jax.device_put(noisy, NamedSharding(mesh, P("x")))
    got = jit(step)(loop.params[0], loop.states[0], noisy)
    expected = (loop.params[1], loop.states[1])
    assert_close(jax.device_get(got), jax.device_get(expected))


@algorithms
def test_a_problem_for_each_device_inside_shard_map(case: Case):
    mesh, loop = make_mesh("8-explicit"), run(case.name, "float32")

    def own(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[0], tree)

    def one_step(params: Any, g: Any) -> Any:
        params, g = own(params), own(g)
        after, _ = apply(loop.tx, params, loop.tx.init(params), g)
        return jax.tree.map(lambda x: x[None], after)

    step = jax.shard_map(one_step, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    problems = [(loop.params[i % 3], loop.grads[i % 2]) for i in range(8)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *problems)
    stacked = jax.device_put(stacked, NamedSharding(mesh, P("x")))
    got = jax.device_get(jit(step)(*stacked))
    for i, (params, g) in enumerate(problems[:3]):
        updates, _ = loop.update(g, loop.states[0], params)
        expected = optax.apply_updates(params, updates)
        one = jax.tree.map(lambda x: jnp.asarray(x[i]), got)  # noqa: B023
        assert_close(one, expected)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=lambda kind: kind.name)
@pytest.mark.parametrize("spec", [P("x", None), P(None, "x")], ids=["rows", "columns"])
@pytest.mark.parametrize("k", [1, 2, 3, 8, 11])
def test_sharded_matrices_are_moved_or_gathered_whichever_sends_less(k, spec, kind):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    shape, place = (16, 32), NamedSharding(mesh, spec)
    noise = jax.random.normal(jax.random.key(0), (k, *shape))
    tree = {str(i): jax.device_put(x, place) for i, x in enumerate(noise)}
    tx = dm.scale_by_lmo(dm.layers_by_path(None, [("", dm.norms.Spectral(), 1.0)]))
    state = tx.init(tree)
    with jax.set_mesh(mesh):
        laid_out = {"out_shardings": (jax.tree.map(lambda x: x.sharding, tree), None)}
        program = jax.jit(tx.update, **laid_out).lower(tree, state).compile()
        steps, _ = program(tree, state)
    # Of each matrix a device lacks seven eighths; there and back they are moved twice,
    # in as many as the busiest device owns.
    matrix = 4 * np.prod(shape) * 7 / 8
    assert dm.count_wire_bytes(program).total == matrix * min(k, 2 * -(-k // 8))
    alone = tx.update({str(i): x for i, x in enumerate(noise)}, state)[0]
    for name, step in steps.items():
        np.testing.assert_allclose(step, alone[name], atol=1e-6)
