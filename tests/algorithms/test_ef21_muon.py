"""EF21-Muon against its box in NumPy, against Gluon, and against itself elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType

import dropmuon_optax as dm
from dropmuon_optax import norms
from dropmuon_optax.compressors import (
    Composed,
    Identity,
    Natural,
    RandK,
    RankK,
    TopK,
)
from tests.reference import drop_muon as numpy_lmos
from tests.reference import ef21 as box

SHAPES = {"a": (12, 20), "tall": (20, 12), "c": (12, 20), "head": (12, 30), "v": (7,)}
ORDER = ["^a$", "^tall$", "^c$", "^(?:head|v)$"]
GEOMETRY = [
    ("^(?:a|tall|c)$", norms.Spectral(num_steps=None), 0.5),
    ("head", norms.Scaled(norms.Column(), 4.0), 0.3),
    ("v", norms.Frobenius(), 0.2),
]
LAYERS = dm.layers_by_path(ORDER, GEOMETRY)
RADIUS = {"a": 0.5, "tall": 0.5, "c": 0.5, "head": 0.3 / 4, "v": 0.2}
LMOS = {
    **dict.fromkeys(("a", "tall", "c"), numpy_lmos.spectral),
    "head": lambda g, t: column(g, t),
    "v": numpy_lmos.frobenius,
}
KEY = jax.random.key(0)
LR, BETA = 0.1, 0.25


def column(g, t):
    """argmin {⟨g, x⟩ : ‖x_·j‖₂ ≤ t for every column j}."""
    return -t * g / np.linalg.norm(g, axis=0)


def normal(seed, *lead):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=(*lead, *shape)) for k, shape in SHAPES.items()}


def float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def mesh_of(*sizes, kind=AxisType.Auto):
    names = ("data", "local")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))


def make(num_workers, worker, server=None, **changes):
    momentum = changes.pop("momentum", 1 - BETA)
    return dm.ef21_muon(
        LR,
        changes.pop("layers", LAYERS),
        worker,
        server,
        momentum,
        num_workers=num_workers,
        key=KEY,
        **changes,
    )


def steps(tx, grads, mesh=None, params=None, state=None, axis="data", active=None):
    """(W, state) after all the gradients, each with a leading axis of workers."""
    params = float32(normal(0)) if params is None else params
    state = tx.init(params) if state is None else state

    @functools.partial(jax.jit, static_argnames="active")
    def turn(params, state, g, active):
        def step(params, state, g):
            mine = jax.tree.map(lambda x: x[0], g)
            how = {} if active is None else {"active": active}
            updates, state = tx.update(mine, state, params, **how)
            return optax.apply_updates(params, updates), state

        return dm.worker_map(step, axis, state, mesh)(params, state, g)

    for k, g in enumerate(grads):
        params, state = turn(params, state, g, None if active is None else active[k])
    return params, state


def assert_close(actual, expected, atol):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(e), rtol=0, atol=atol)


def assert_mostly_close(actual, expected):
    """Equal up to roundings, but for few entries that the server's compressor tipped.

    S = X − W is a small difference of weights near 3, so it carries their float32
    rounding, 2e-7, absolutely. Where that decides whether an entry of S is among the
    largest, or to which power of two it goes, one entry of W differs by up to a step.
    (Rounding the box's inputs changes nothing, and without a compressor at the server
    all of W agrees to 2e-6.) A later gradient would spread that entry over its matrix,
    by as much as the machine's roundings please: hence `follow`.

    5e-4 is above all other roundings (2e-4 at most, of a float32 SVD divided by short
    columns) and a fifteenth of the shortest step, by which a wrong formula is off. Of
    the largest entries one takes another's place: at most three such pairs are seen.
    """
    for name, e in expected.items():
        apart = np.abs(np.asarray(actual[name]) - e)
        assert np.sum(apart > 5e-4) <= 6, name
        assert apart.max() <= LR * RADIUS[name], name


def assert_equal(actual, expected):
    assert_close(actual, expected, 0)


# The box


NUMPY = {
    "top": (TopK(0.2, block=None), box.top_k(0.2)),
    "rank": (RankK(0.25, exact=True), box.rank_k(0.25)),
    "natural": (Natural(), box.natural),
    "identity": (Identity(), box.identity),
}
DENSE_VECTOR = {"v": box.identity}  # vectors go dense unless a rule names them


def by_name(compress):
    return {**dict.fromkeys(SHAPES, compress), **DENSE_VECTOR}


@pytest.mark.parametrize(
    ("worker", "server", "topology", "drops"),
    [
        ("top", "natural", "owner", False),
        ("rank", "top", "owner", True),
        ("natural", None, "owner", False),
        ("top", None, "gather", True),
    ],
)
def test_the_box_in_numpy(worker, server, topology, drops):
    n, num_steps = 3, 50
    noise = [normal(1 + k, n) for k in range(num_steps)]
    sets = [(True,) * 4] * num_steps
    if drops:
        some = (False, True, False, True), (True, False, True, False), sets[0]
        sets = [some[i] for i in np.random.default_rng(5).integers(3, size=num_steps)]
    names = [("a",), ("tall",), ("c",), ("head", "v")]
    moving = [
        [n for i, on in enumerate(active) if on for n in names[i]] for active in sets
    ]

    # Gradients that depend on W, so that whoever differentiates elsewhere is found out.
    def gradient(W, j, k):
        return {name: noise[k][name][j] + 0.1 * W[name] for name in W}

    lmos = {
        k: (lambda g, t, f=f: f(np.atleast_2d(g), t).reshape(g.shape))
        for k, f in LMOS.items()
    }
    tx = make(
        n,
        NUMPY[worker][0],
        NUMPY[server][0] if server else None,
        topology=topology,
    )
    params, state = float32(normal(0)), tx.init(float32(normal(0)))

    @functools.partial(jax.jit, static_argnames="active")
    def turn(params, state, g, active):
        def step(params, state, g):
            grads = jax.tree.map(lambda x, w: x[0] + 0.1 * w, g, params)
            updates, state = tx.update(grads, state, params, active=active)
            return optax.apply_updates(params, updates), state

        return dm.worker_map(step, "data", state)(params, state, g)

    found = []
    for k in range(num_steps):
        params, state = turn(params, state, float32(noise[k]), sets[k])
        found.append((params, dm.ef21_muon_eval_params(state, params)))
    found = jax.tree.map(np.float64, found)
    expected = box.ef21_muon(
        normal(0),
        gradient,
        n,
        lmos,
        {k: LR * r for k, r in RADIUS.items()},
        BETA,
        by_name(NUMPY[worker][1]),
        by_name(NUMPY[server][1]) if server else None,
        moving,
        follow=found,
    )
    for (W, X), (its_W, its_X) in zip(found, expected, strict=True):
        assert_mostly_close(W, its_W)
        assert_mostly_close(X, its_X)


# The papers' equalities


def gluon_on(grads, **changes):
    tx = dm.gluon(LR, LAYERS, 1 - BETA, **changes)
    params = float32(normal(0))
    state, update = tx.init(params), jax.jit(tx.update)
    for g in grads:
        mean = jax.tree.map(lambda x: x.mean(0), g)
        updates, state = update(mean, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("topology", ["owner", "gather"])
@pytest.mark.parametrize("server", [None, Identity()], ids=repr)
def test_without_compression_it_is_gluon_on_the_mean_gradient(topology, server):
    if topology == "gather" and server is not None:
        pytest.skip("every worker is the server: there is no server compressor")
    grads = [float32(normal(k, 4)) for k in range(5)]
    params, _ = steps(make(4, Identity(), server, topology=topology), grads)
    # The mean is taken in another order: a few roundings, through an exact oracle.
    assert_close(params, gluon_on(grads), atol=2e-6)


def test_a_single_worker_needs_no_axis():
    grads = [float32(normal(k, 1)) for k in range(3)]
    tx, params = make(1, TopK(0.2), Natural()), float32(normal(0))
    state = tx.init(params)
    for g in grads:
        mine = jax.tree.map(lambda x: x[0], g)
        updates, state = jax.jit(tx.update)(mine, state, params)
        params = optax.apply_updates(params, updates)
    expected, its_state = steps(tx, grads)
    assert_close(params, expected, atol=1e-6)
    assert_close(state, its_state, atol=1e-6)


def test_the_same_data_on_all_workers_is_one_worker():
    one = [float32(normal(k, 1)) for k in range(4)]
    same = jax.tree.map(lambda x: jnp.repeat(x, 4, 0), one)
    compressors = TopK(0.2), Natural()
    single, state = steps(make(1, *compressors), one)
    several, states = steps(make(4, *compressors), same)
    # The mean of four equal numbers is exact; only the programs differ.
    assert_close(several, single, atol=1e-6)
    for worker in range(4):
        mine = jax.tree.map(lambda x, j=worker: x[j], states.G_j)
        assert_close(mine, jax.tree.map(lambda x: x[0], state.G_j), atol=1e-6)


def test_without_momentum_no_momentum_is_kept():
    tx = make(2, TopK(0.2), momentum=0.0)
    state = tx.init(float32(normal(0)))
    assert state.momentum is None
    grads = [float32(normal(k, 2)) for k in range(3)]
    params, _ = steps(tx, grads)
    tiny, _ = steps(make(2, TopK(0.2), momentum=jnp.zeros(())), grads)
    assert_close(params, tiny, atol=1e-6)


def test_momentum_can_begin_at_the_first_gradient():
    grads = [float32(normal(3, 2))]
    _, state = steps(make(2, TopK(0.2), initial="gradient"), grads)
    assert_close(state.momentum, grads[0], atol=1e-6)
    _, state = steps(make(2, TopK(0.2)), grads)
    assert_close(state.momentum, jax.tree.map(lambda g: BETA * g, grads[0]), atol=1e-6)


def test_constrained_steps_are_gluons():
    grads = [float32(normal(k, 2)) for k in range(3)]
    params, _ = steps(make(2, Identity(), constrained=True), grads)
    assert_close(params, gluon_on(grads, constrained=True), atol=2e-6)


def test_workers_estimates_and_the_servers_stay_together():
    grads = [float32(normal(k, 4)) for k in range(30)]
    tx = make(4, Composed(TopK(0.2), Natural()), Natural(), topology="owner")
    _, state = steps(tx, grads)
    shared = make(4, Composed(TopK(0.2), Natural()), topology="gather")
    _, other = steps(shared, grads)
    # G is kept at the owner, G_j at the workers: sums of the same messages.
    for name, mean in other.server.G.items():
        apart = state.G_j[name].mean(0) - mean
        assert float(jnp.abs(apart).max()) < 1e-5, name


# The same numbers wherever it runs


def test_real_devices_and_the_simulation_agree():
    grads = [float32(normal(k, 4)) for k in range(3)]
    for compressor in (TopK(0.2), RandK(0.2), RankK(0.25, warm_start=True)):
        tx = make(4, compressor, Natural())
        simulated, state = steps(tx, grads)
        real, its_state = steps(tx, grads, mesh_of(4))
        # The gradients are given, so only roundings inside the oracle differ; natural
        # compression turns one into a factor of two of a step's entry at worst.
        assert_close(real, simulated, atol=1e-4)
        assert_close(its_state.G_j, state.G_j, atol=1e-5)
        for leaf in jax.tree.leaves(real):
            copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            assert all(np.array_equal(copies[0], copy) for copy in copies)


def test_owners_and_gathering_agree():
    grads = [float32(normal(k, 4)) for k in range(3)]
    owned, _ = steps(make(4, TopK(0.2)), grads, mesh_of(4))
    gathered, _ = steps(make(4, TopK(0.2), topology="gather"), grads, mesh_of(4))
    assert_close(owned, gathered, atol=1e-6)


def test_a_mesh_of_explicit_axes():
    grads = [float32(normal(k, 4)) for k in range(2)]
    tx = make(4, TopK(0.2), Natural())
    explicit, _ = steps(tx, grads, mesh_of(4, kind=AxisType.Explicit))
    auto, _ = steps(tx, grads, mesh_of(4))
    assert_close(explicit, auto, atol=1e-6)


def test_nodes_of_several_devices_are_workers_with_their_mean():
    grads = [float32(normal(k, 8)) for k in range(3)]
    nodes = [
        jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]).mean(1), g) for g in grads
    ]
    tx = make(4, TopK(0.2), Natural(), local_axis_name="local")
    params, _ = steps(tx, grads, mesh_of(4, 2), axis=("data", "local"))
    expected, _ = steps(make(4, TopK(0.2), Natural()), nodes, mesh_of(4))
    assert_close(params, expected, atol=1e-4)


def test_large_embeddings_are_cut_into_blocks_of_rows(monkeypatch):
    monkeypatch.setattr("dropmuon_optax.wire.ownership.MIN_BLOCK", 16)
    grads = [float32(normal(k, 4)) for k in range(3)]
    tx = make(4, Identity())
    state = tx.init(float32(normal(0)))
    # 30 columns in 8 blocks of 4, the last with two columns of padding: one for each
    # of the owners of the three matrices, and five for the fourth owner, who has none.
    shapes = sorted(x.shape for x in state.server.G.values())
    assert (4, 5, 12, 4) in shapes
    params, _ = steps(tx, grads)
    assert_close(params, gluon_on(grads), atol=2e-6)


# With layers dropped


def test_frozen_layers_keep_every_memory_bit_for_bit():
    grads = [float32(normal(k, 3)) for k in range(2)]
    tx = make(3, RankK(0.25, warm_start=True), Natural())
    params, state = steps(tx, grads)
    active = (False, True, False, False)
    after, new = steps(tx, grads[:1], params=params, state=state, active=[active])
    frozen = ["a", "c", "head", "v"]
    for before, now in ((params, after), (state.G_j, new.G_j)):
        assert_equal({k: now[k] for k in frozen}, {k: before[k] for k in frozen})
        assert float(jnp.abs(now["tall"] - before["tall"]).max()) > 0
    X = dm.ef21_muon_eval_params(state, params)
    moved = dm.ef21_muon_eval_params(new, after)
    assert_equal({k: moved[k] for k in frozen}, {k: X[k] for k in frozen})
    assert float(jnp.abs(moved["tall"] - X["tall"]).max()) > 0
    assert int(new.count) == 3


def test_inside_drop_layers():
    grads = [float32(normal(k, 3)) for k in range(3)]
    sampling, inner = dm.samplings.Progressive(), make(3, TopK(0.2), Natural())
    tx = dm.drop_layers(inner, LAYERS, sampling, key=KEY)
    sets = [dm.active_layers(sampling, 4, KEY, k) for k in range(3)]
    params, _ = steps(tx, grads, active=sets)
    expected, _ = steps(inner, grads, active=sets)
    assert_equal(params, expected)
    with pytest.raises(ValueError, match="`active` must be a tuple"):
        steps(tx, grads)


def test_layers_stacked_by_a_scan_move_row_by_row():
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(3, 8, 24)), jnp.float32)
    grads = jnp.asarray(rng.normal(size=(2, 3, 8, 24)), jnp.float32)
    geometry = [("", norms.Spectral(num_steps=None), 1.0)]
    stacked = dm.layers_by_path(["blocks"], geometry, stacked="blocks")
    apart = dm.layers_by_path([r"(\d)"], geometry)
    active = (False, True, True)

    def run(layers, params, g):
        tx = make(2, TopK(0.2), Natural(), layers=layers)
        return steps(tx, [g], params=params, active=[active])[0]

    together = run(stacked, {"blocks": rows}, {"blocks": grads})["blocks"]
    separate = run(
        apart,
        {str(i): rows[i] for i in range(3)},
        {str(i): grads[:, i] for i in range(3)},
    )
    assert_close(list(together), [separate[str(i)] for i in range(3)], atol=1e-6)
    assert_equal(together[0], rows[0])


# In company


def test_in_a_partition_with_adam_on_the_rest():
    params = float32(normal(0))
    labels = {k: "adam" if k in ("head", "v") else "muon" for k in SHAPES}

    def mean(updates, state, params=None):
        return jax.lax.pmean(updates, "data"), state

    pmean = optax.GradientTransformation(optax.init_empty_state, mean)
    tx = optax.partition(
        {
            "muon": make(2, TopK(0.2), Natural()),
            "adam": optax.chain(pmean, optax.scale_by_sign(), optax.scale(-0.1)),
        },
        labels,
    )
    grads = [float32(normal(k, 2)) for k in range(2)]
    after, state = steps(tx, grads, mesh_of(2))
    signs = sum(jnp.sign(g["head"].mean(0)) for g in grads)
    assert_close(after["head"], params["head"] - 0.1 * signs, atol=1e-6)
    X = dm.ef21_muon_eval_params(state, after)
    assert_equal(X["head"], after["head"])
    assert float(jnp.abs(X["a"] - after["a"]).max()) > 0


def test_bfloat16_parameters_and_a_narrow_momentum():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), normal(0))
    tx = make(2, TopK(0.2), Natural(), momentum_dtype=jnp.bfloat16)
    grads = [jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), normal(1, 2))]
    state = tx.init(params)
    after, new = steps(tx, grads, params=params, state=state)
    assert {x.dtype.name for x in jax.tree.leaves(after)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(new.G_j)} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(new.momentum)} == {"bfloat16"}
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, new)


def test_a_run_resumes_from_its_checkpoint(tmp_path):
    grads = [float32(normal(k, 4)) for k in range(4)]
    tx, mesh = make(4, RankK(0.25, warm_start=True), Natural()), mesh_of(4)
    expected, _ = steps(tx, grads, mesh)
    params, state = steps(tx, grads[:2], mesh)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        fresh = {"params": params, "state": tx.init(params)}
        shapes = jax.eval_shape(lambda: fresh)
        found = checkpointer.restore(tmp_path / "run", shapes)
    resumed, _ = steps(tx, grads[2:], mesh, **found)
    assert_equal(resumed, expected)


# Bad input


def test_bad_arguments(without_type_checks):
    with pytest.raises(ValueError, match="`topology` must be 'owner' or 'gather'"):
        make(2, TopK(0.2), topology="ring")
    with pytest.raises(ValueError, match="`server_compressor` must be None"):
        make(2, TopK(0.2), Natural(), topology="gather")
    with pytest.raises(ValueError, match="`worker_compressor` must be a compressor"):
        make(2, 0.1)
    with pytest.raises(ValueError, match="`num_workers` must be a whole number"):
        make(0, TopK(0.2))
    with pytest.raises(ValueError, match="`axis_name` must be a name, got 3"):
        make(2, TopK(0.2), axis_name=3)
    with pytest.raises(ValueError, match="none for 'tall'"):
        make(2, [("^a$|c|head|v", Identity())]).init(float32(normal(0)))
    with pytest.raises(ValueError, match="at 'a'"):
        make(2, TopK(0.001)).init(float32(normal(0)))
    no_norm = dm.layers_by_path(None, [("a", None, 1.0), ("", norms.Spectral(), 1.0)])
    with pytest.raises(ValueError, match=r"'a' must have a norm.*optax.partition"):
        make(2, TopK(0.2), layers=no_norm).init(float32(normal(0)))


def test_a_step_in_the_wrong_place():
    params, g = float32(normal(0)), float32(normal(1))
    tx = make(2, TopK(0.2))
    with pytest.raises(ValueError, match=r"`axis_name` must be in scope.*'data'"):
        tx.update(g, tx.init(params), params)
    with pytest.raises(ValueError, match="size of the axis 'data', 4, got 2"):
        jax.vmap(
            lambda g: tx.update(g, tx.init(params), params),
            axis_name="data",
            axis_size=4,
            in_axes=None,
        )(g)
    grads = [float32(normal(1, 4))]
    with pytest.raises(ValueError, match=r"4 workers, the size of the axis.*got 2"):
        steps(tx, grads, mesh_of(4))
    with pytest.raises(ValueError, match=r"must have an axis 'rows'"):
        steps(tx, grads, mesh_of(4), axis="rows")
    with pytest.raises(ValueError, match=r"no axis but those of the workers.*'local'"):
        steps(tx, grads, mesh_of(2, 2))
    with pytest.raises(ValueError, match=r"3.*workers can share|2 workers can share"):
        steps(tx, [float32(normal(1, 3))])


def test_the_state_of_another_number_of_workers():
    tx, other = make(4, TopK(0.2)), make(2, TopK(0.2))
    params = float32(normal(0))
    with pytest.raises(ValueError, match="size of the axis 'data', 2, got 4"):
        steps(tx, [float32(normal(1, 2))], state=other.init(params))
    shrunk = {**params, "a": params["a"][:6]}
    with pytest.raises(ValueError, match=r"'a' must be one worker's"):
        steps(other, [float32(normal(1, 2))], state=other.init(shrunk))
    X_apart = make(4, TopK(0.2), Natural()).init(params)
    alone = jax.tree.map(lambda x: x[:1], X_apart.server)
    with pytest.raises(ValueError, match="all 4 workers' parts"):
        dm.ef21_muon_eval_params(X_apart._replace(server=alone), params)


def test_a_forgotten_mean_is_an_error():
    tx, params = make(2, TopK(0.2)), float32(normal(0))
    state = tx.init(params)

    def step(params, state, g):
        mine = jax.tree.map(lambda x: x[0], g)
        updates, state = tx.update(mine, state, params)
        return optax.apply_updates(params, updates), state, mine["v"].sum()

    for mesh in (None, mesh_of(2)):
        mapped = dm.worker_map(step, "data", state, mesh)
        with pytest.raises(ValueError, match=r"out_axes|out_specs|replicat|vary"):
            jax.jit(mapped)(params, state, float32(normal(1, 2)))


def test_adaptive_radii_with_a_compressing_server_warn():
    geometry = [("", norms.Frobenius(), dm.AdaptiveRadius(1.0, 1.0))]
    layers = dm.layers_by_path(None, geometry)
    with pytest.warns(UserWarning, match="identity as `server_compressor` only"):
        make(2, TopK(0.2), Natural(), layers=layers).init(float32(normal(0)))
    grads = [float32(normal(k, 2)) for k in range(2)]
    params, _ = steps(make(2, Identity(), layers=layers), grads)
    tx, expected = dm.gluon(LR, layers, 1 - BETA), float32(normal(0))
    state = tx.init(expected)
    for g in grads:
        mean = jax.tree.map(lambda x: x.mean(0), g)
        updates, state = tx.update(mean, state, expected)
        expected = optax.apply_updates(expected, updates)
    assert_close(params, expected, atol=2e-6)


@pytest.mark.parametrize("warm_start", [False, True])
def test_map_params_reaches_the_workers_buffers_and_no_stacks(warm_start):
    params = float32(normal(0))
    tx = make(4, RankK(0.25, warm_start=warm_start), Natural())
    state, specs = tx.init(params), dict.fromkeys(params, "spec")
    mapped = optax.tree.map_params(tx, lambda _, spec: spec, state, specs)
    assert mapped.G_j == mapped.momentum == specs
    assert_equal(mapped.server, state.server)
    assert_equal(mapped.memory, state.memory)


def test_a_state_of_other_owners_has_another_name():
    params = float32(normal(0))
    ours = make(4, TopK(0.2), work_share=0.0).init(params)
    same = make(4, Natural(), work_share=0.0).init(params)
    assert set(ours.server.layout) == set(same.server.layout)
    other = make(3, TopK(0.2)).init(params)
    assert set(ours.server.layout) != set(other.server.layout)
    with pytest.raises(ValueError, match="`work_share` must be"):
        make(4, TopK(0.2), work_share=1.5)


def test_leaves_without_entries_over_simulated_workers():
    tx = make(3, TopK(0.5), layers=lambda p: {"a": dm.Layer(0, norms.RMS())})
    params, grads = {"a": jnp.zeros((0,))}, [{"a": jnp.zeros((3, 0))}]
    moved, state = steps(tx, grads, params=params)
    assert moved["a"].shape == (0,)
    assert state.G_j["a"].shape == (3, 0)
