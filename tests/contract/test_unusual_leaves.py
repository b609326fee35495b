"""Leaves without entries, of complex numbers, of integers, and mere shapes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import (
    CASES,
    Case,
    apply,
    assert_close,
    assert_equal,
    case_named,
    every_case,
    given,
    jit,
    types,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dropmuon_optax as dm
from dropmuon_optax import compressors, linalg, norms

EMPTY = {
    "rows": {"kernel": (0, 8)},
    "columns": {"kernel": (8, 0)},
    "vector": {"bias": (0,)},
    "batch": {"kernel": (0, 8, 4)},
}
KEY = np.uint32([0, 7])


def weights(seed: int = 0, **more: Any) -> Any:
    rng = np.random.default_rng(seed)
    full = {
        "dense": {"kernel": rng.normal(size=(8, 4)), "bias": rng.normal(size=4)},
        "head": {"kernel": rng.normal(size=(4, 8))},
    }
    return {**jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), full), **more}


def empties() -> Any:
    shapes = {
        name: {k: jnp.zeros(s) for k, s in v.items()} for name, v in EMPTY.items()
    }
    return {f"{name}_empty": leaf for name, leaf in shapes.items()}


@every_case
def test_leaves_without_entries_change_nothing_for_the_others(case: Case):
    tx, params = case.build(), weights()
    both, g, more = weights(**empties()), weights(1), weights(1, **empties())

    @jit
    def step(params: Any, g: Any) -> Any:
        return apply(tx, params, apply(tx, params, tx.init(params), g)[1], g)[0]

    got, alone = step(both, more), step(params, g)
    assert_close({name: got[name] for name in alone}, alone)
    assert types(got) == types(both)


@every_case
def test_nothing_but_leaves_without_entries(case: Case):
    tx, params = case.build(), empties()
    state = tx.init(params)
    updates, after = tx.update(params, state, params)
    assert types(updates) == types(params)
    assert types(after) == types(state)


@pytest.mark.parametrize("topology", ["owner", "gather"])
@pytest.mark.parametrize("server", [None, compressors.ScaledSign()], ids=repr)
def test_several_workers_and_leaves_without_entries(topology: str, server: Any):
    if topology == "gather" and server is not None:
        pytest.skip("refused")
    params = weights(**empties())
    tx = dm.ef21_muon(
        0.125,
        dm.layers_by_path(None),
        compressors.TopK(0.5),
        server,
        topology=topology,
        num_workers=2,
        key=KEY,
    )
    state = tx.init(params)

    def step(params: Any, state: Any, batch: Any) -> Any:
        g = jax.tree.map(lambda x: x + batch.sum(), dm.local_params(params, "data"))
        return apply(tx, params, state, g)

    run = jit(dm.worker_map(step, "data", state))
    after, state = run(params, state, jnp.arange(2.0))
    assert types(after) == types(params)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(after))
    assert types(dm.ef21_muon_eval_params(state, after)) == types(params)


def sampled(params: Any) -> Any:
    layers = dm.layers_by_path(["empty", "dense", "head"])
    inner = dm.muon(0.125, adam_learning_rate=0.125)
    return dm.drop_layers(inner, layers, dm.samplings.RoundRobin(), key=KEY), params


@pytest.mark.usefixtures("standard_promotion")
def test_dropped_layers_without_entries():
    tx, params = sampled(weights(**empties()))
    state = tx.init(params)
    for k in range(3):
        active = tuple(i == k for i in range(3))
        given, _ = tx.update(params, state, params, active=active)
        drawn, state = jit(tx.update)(params, state, params)
        assert_close(given, drawn)
        assert jnp.any(drawn["head"]["kernel"]) == (k == 2)


def test_a_stack_of_no_layers_moves_nothing():
    layers = given(
        {
            "stack": dm.Stacked(0, norms.Spectral()),
            "head": dm.Layer(0, norms.MaxEntry()),
        }
    )
    params = {"stack": jnp.zeros((0, 8, 4)), "head": jnp.ones((4, 2))}
    tx = dm.drop_muon(0.5, layers, dm.samplings.Full(), key=KEY)
    for active in (None, (True,)):
        updates, _ = tx.update(params, tx.init(params), params, active=active)
        np.testing.assert_array_equal(updates["head"], -0.5)
        assert updates["stack"].shape == (0, 8, 4)


ALL_NORMS = [
    norms.Spectral(),
    norms.Spectral(num_steps=None),
    norms.Frobenius(),
    norms.Column(),
    norms.Row(),
    norms.MaxEntry(),
    norms.RMS(),
    norms.scion_spectral(),
    norms.scion_sign(),
]


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("norm", ALL_NORMS, ids=repr)
def test_the_norm_of_no_entries_is_zero(norm: norms.Norm, shape: tuple[int, int]):
    x = jnp.zeros(shape, jnp.bfloat16)
    assert norm.norm(x) == norm.dual_norm(x) == 0
    assert norm.norm(x).dtype == jnp.float32
    for step in (norm.lmo(x, 3.0), norm.sharp(x), jax.vmap(norm.lmo)(x[None])[0]):
        assert jax.typeof(step) == jax.typeof(x)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)], ids=str)
def test_orthogonalized_nothing_is_nothing(shape: tuple[int, int]):
    x = jnp.zeros(shape)
    for fun in (linalg.newton_schulz, linalg.gram_newton_schulz, linalg.polar_factor):
        assert fun(x).shape == shape


COMPRESSORS = [
    compressors.Identity(),
    compressors.TopK(0.5),
    compressors.ColumnTopK(0.5),
    compressors.RandK(0.5),
    compressors.RankK(0.5),
    compressors.RankK(0.5, warm_start=True),
    compressors.Natural(),
    compressors.BFloat16(),
    compressors.ScaledSign(),
    compressors.Damping(0.5),
    compressors.Dropout(0.5),
    compressors.Composed(compressors.TopK(0.5), compressors.Natural()),
]


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)], ids=str)
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_nothing_is_sent_of_no_entries(compressor: Any, shape: tuple[int, int]):
    payload = compressor.compress(jnp.zeros(shape), key=jax.random.key(0))
    assert not jax.tree.leaves(payload)
    assert compressor.num_bits(shape) == 0
    assert jax.typeof(compressor.decompress(payload, shape)) == jax.typeof(
        jnp.zeros(shape)
    )


def test_describe_lists_leaves_without_entries():
    text = dm.describe(dm.layers_by_path(None), empties(), compressors.TopK(0.5))
    assert text.count("Identity()") == len(EMPTY)
    assert text.count("0.0%") == len(EMPTY)


def test_weights_on_the_ball_and_points_of_smoothness_without_entries():
    params, key = weights(**empties()), jax.random.key(0)
    assert types(dm.init_on_ball(params, key=key)) == types(params)
    layers = dm.layers_by_path(None)
    after = jax.tree.map(lambda x: x + 1, params)
    points = dm.measure_smoothness(lambda x: x, layers, params, after)
    fits = {fit.path: fit for fit in dm.fit_smoothness(points, layers, params)}
    assert fits["rows_empty/kernel"].verdict == "never moved"
    assert fits["head/kernel"].num_points == 1


def mixed(dtype: str) -> Any:
    """A tree whose biases are of another dtype, or its kernels and biases."""
    return weights(extra={"bias": jnp.ones(4, dtype)})


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8"])
@every_case
def test_integers_are_refused_by_name(case: Case, dtype: str):
    with pytest.raises(ValueError, match=rf"'extra/bias' must be .*got {dtype}"):
        case.build().init(mixed(dtype))


TRACKED = dm.track_smoothness(dm.layers_by_path(None))
DROPPED = dm.drop_layers(
    optax.sgd(0.1),
    dm.layers_by_path(["dense", "extra", "head"]),
    dm.samplings.Full(),
    key=KEY,
)


@pytest.mark.parametrize("tx", [TRACKED, DROPPED], ids=["track", "drop_layers"])
def test_wrappers_refuse_integers_by_name(tx: Any):
    with pytest.raises(ValueError, match=r"'extra/bias' must be .*got int32"):
        tx.init(mixed("int32"))


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.name not in ("muon", "muon-decayed", "momentum")],
    ids=repr,
)
def test_oracles_refuse_complex_numbers_by_name(case: Case):
    with pytest.raises(ValueError, match=r"'extra/bias' must be real .*got complex64"):
        case.build().init(mixed("complex64"))


def test_complex_matrices_are_refused_by_name_before_they_are_drawn():
    with pytest.raises(ValueError, match=r"'w' must be real .*got complex64"):
        dm.init_on_ball({"w": jnp.ones((2, 2), jnp.complex64)}, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"'w' must be real .*got complex64"):
        dm.muon(0.1).init({"w": jnp.ones((2, 2), jnp.complex64)})


def complex_tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 4))
    return {"bias": jnp.asarray(x[0] + 1j * x[1], jnp.complex64)}


@pytest.mark.usefixtures("standard_promotion")
def test_complex_vectors_are_moved_as_adamw_moves_them():
    ours = dm.muon(0.1, adam_b2=0.999, adam_eps=1e-8, adam_weight_decay=0.5)
    theirs = optax.adamw(0.1, b2=0.999, eps=1e-8, weight_decay=0.5)
    a = b = complex_tree(0)
    first, second = ours.init(a), theirs.init(b)
    for step in range(3):
        a, first = apply(ours, a, first, complex_tree(1 + step))
        b, second = apply(theirs, b, second, complex_tree(1 + step))
    assert jnp.abs(a["bias"].imag).min() > 0
    # float32: some roundings of numbers of about 1
    np.testing.assert_allclose(a["bias"], b["bias"], rtol=1e-6)


def test_momentum_keeps_imaginary_parts():
    tx, g = dm.scale_by_momentum(0.5), complex_tree(0)
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates["bias"], 0.5 * g["bias"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"'bias' must be real .*got complex64"):
        dm.scale_by_momentum(0.5, momentum_dtype="float32").init(g)


ABSTRACT = {
    **{case.name: case.build() for case in CASES},
    "drop_layers(muon)": dm.drop_layers(
        dm.muon(0.1),
        dm.layers_by_path(["dense", "head"]),
        dm.samplings.Full(),
        key=KEY,
    ),
    "track_smoothness": TRACKED,
    "ef21_muon(owner)": dm.ef21_muon(
        0.1,
        dm.layers_by_path(None),
        compressors.TopK(0.5),
        compressors.ScaledSign(),
        num_workers=2,
        key=KEY,
    ),
    "ef21_muon(gather)": dm.ef21_muon(
        0.1,
        dm.layers_by_path(None),
        compressors.RankK(0.5, warm_start=True),
        num_workers=2,
        topology="gather",
        key=KEY,
    ),
}


def kinds(tree: Any) -> list[Any]:
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", ABSTRACT)
def test_a_state_can_be_made_from_shapes(name: str):
    tx, params = ABSTRACT[name], weights()
    shapes = jax.eval_shape(lambda: params)
    real = tx.init(params)
    made_from = [jax.eval_shape(tx.init, shapes)]
    if name != "ef21_muon(owner)":  # which keeps the weights
        made_from.append(tx.init(shapes))
    for made in made_from:
        assert jax.tree.structure(made) == jax.tree.structure(real)
        assert kinds(made) == kinds(real)


def test_a_state_that_keeps_the_weights_is_not_made_from_shapes():
    # W is not zero: a state whose X were would go on from zero, in silence.
    tx, shapes = ABSTRACT["ef21_muon(owner)"], jax.eval_shape(weights)
    with pytest.raises(ValueError, match=r"must be arrays where .*got shapes"):
        tx.init(shapes)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", ["muon", "gluon", "drop_layers(muon)"])
def test_a_state_made_from_shapes_keeps_their_shardings(name: str, kind: AxisType):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), weights()
    )
    state = ABSTRACT[name].init(shapes)
    buffers = [x for x in jax.tree.leaves(state) if x.ndim and x.dtype == jnp.float32]
    theirs = optax.adamw(0.1).init(shapes)[0].mu
    assert buffers
    assert {x.sharding for x in jax.tree.leaves(theirs)} == {sharding}
    assert {x.sharding for x in buffers} == {sharding}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["muon", "gluon"])
def test_nnx_builds_an_optimizer_from_shapes(name: str):
    nnx = pytest.importorskip("flax.nnx")

    def build() -> Any:
        model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, case_named(name).build(), wrt=nnx.Param)

    _, abstract = nnx.eval_shape(build)
    _, real = build()
    assert kinds(nnx.state(abstract)) == kinds(nnx.state(real))


def test_vmapped_and_scanned_steps_without_entries():
    tx, params = dm.gluon(0.125), weights(**empties())
    state = tx.init(params)

    def step(carry: Any, g: Any) -> Any:
        return apply(tx, *carry, g), None

    stack = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    (after, _), _ = jit(lambda g: jax.lax.scan(step, (params, state), g))(stack)
    one = apply(tx, params, state, params)
    assert_close(after, apply(tx, *one, params)[0])
    both, _ = jit(jax.vmap(lambda g: tx.update(g, state, params)))(stack)
    assert_equal(jax.tree.map(lambda x: x[0], both), jax.tree.map(lambda x: x[1], both))
