"""Drop-Muon against its box, and `drop_layers` around other transformations."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dropmuon_optax as dm
from dropmuon_optax import counters
from tests.reference import drop_muon as box

STEPS = 20

# Programs are small here and compiled by the hundred: most of the time goes to LLVM.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

B = 4
KEY = jax.random.key(17)
SHAPES = {
    "embed": {"table": (6, 4)},
    "block_0": {"bias": (4,), "kernel": (4, 4)},
    "block_1": {"bias": (4,), "kernel": (4, 4)},
    "head": {"kernel": (4, 6)},
}
ORDER = ["embed", r"block_(\d)", "head"]
EXACT = [
    ("embed", dm.norms.MaxEntry(), 0.5),
    ("kernel", dm.norms.Spectral(num_steps=None), 2.0),
    ("bias", dm.norms.Frobenius(), 1.0),
]
QUICK = [("embed|kernel", dm.norms.Row(), 2.0), ("bias", dm.norms.Frobenius(), 1.0)]
LAYERS = dm.layers_by_path(ORDER, QUICK)

SAMPLINGS = [
    dm.samplings.Full(),
    dm.samplings.Progressive(),
    dm.samplings.EpochShift(STEPS),
    dm.samplings.Independent((0.5, 0.3, 0.6, 0.7)),
    dm.samplings.Nice(2),
    dm.samplings.RoundRobin(),
]
SGD = optax.sgd(0.1, momentum=0.9, nesterov=True)
INNERS = {
    "gluon": dm.gluon(0.1, LAYERS, weight_decay=0.1),
    "muon": dm.muon(0.1, weight_decay=0.1, adam_weight_decay=0.1),
    "scion": dm.scion(0.1),
    "sgd": SGD,
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "injected": optax.inject_hyperparams(optax.sgd)(lambda k: 0.1 / (k + 1), 0.9),
    "mixing": optax.chain(optax.clip_by_global_norm(0.1), SGD),
    "noisy": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), SGD),
    "accumulating": optax.MultiSteps(SGD, 2).gradient_transformation(),
    "optax's muon": optax.contrib.muon(0.1),
}
NESTED, MIXED = dm.samplings.Progressive(), dm.samplings.Nice(2)
every_inner = pytest.mark.parametrize("inner", INNERS.values(), ids=INNERS.keys())
# The others mix layers: noise and scale depend on all leaves that move at once.
every_separable_inner = pytest.mark.parametrize(
    "inner",
    [inner for name, inner in INNERS.items() if name not in ("mixing", "noisy")],
    ids=[name for name in INNERS if name not in ("mixing", "noisy")],
)


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield  # Optax's own parts promote


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    make = lambda shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    return jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def by_name(params):
    """{"block_0/bias": …} with vectors as 1 × n."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.atleast_2d(x)
        for path, x in flat
    }


def layer_of(name):
    return ["embed", "block_0", "block_1", "head"].index(name.partition("/")[0])


def mask(grads, active, value):
    """The gradients with those of frozen layers replaced by a value."""
    return {
        name: part
        if active[layer_of(name)]
        else jax.tree.map(lambda x: jnp.full_like(x, value), part)
        for name, part in grads.items()
    }


def sets(sampling, steps=STEPS, key=KEY):
    return [dm.active_layers(sampling, B, key, k) for k in range(steps)]


def train(tx, params, gradient, actives):
    """Parameters and states after each step; `actives` holds sets, or None to draw."""

    @functools.partial(jit, static_argnames="active")
    def step(params, state, g, active):
        updates, state = tx.update(g, state, params, active=active)
        return optax.apply_updates(params, updates), state

    state, trajectory, states = tx.init(params), [], []
    for k, active in enumerate(actives):
        params, state = step(params, state, gradient(params, k), active)
        trajectory.append(params)
        states.append(state)
    return trajectory, states


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_close(found, expected, rtol=1e-5):
    # float32 programs that differ in what is fused: a few roundings in each step.
    close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol)
    jax.tree.map(close, found, expected)


# The box.


@pytest.mark.parametrize(
    ("sampling", "static"),
    [(s, False) for s in SAMPLINGS]
    + [(s, True) for s in (NESTED, MIXED, dm.samplings.RoundRobin())],
    ids=lambda x: {True: "static", False: "sampled"}.get(x, repr(x)),
)
def test_the_trajectory_is_that_of_the_box(sampling, static):
    target, noise = by_name(tree(1)), [by_name(tree(100 + k)) for k in range(STEPS)]
    drawn = sets(sampling)
    schedule = optax.linear_schedule(0.2, 0.02, STEPS)
    lmos = {"table": box.max_entry, "kernel": box.spectral, "bias": box.frobenius}
    radius = {"table": 0.5, "kernel": 2.0, "bias": 1.0}
    start = by_name(tree(0, np.float32))
    expected = box.drop_muon(
        {name: x.astype(np.float64) for name, x in start.items()},
        lambda x, k: {
            name: x[name] - target[name] + 0.3 * noise[k][name] for name in x
        },
        {name: layer_of(name) for name in start},
        [{i for i in range(B) if active[i]} for active in drawn],
        {name: lmos[name.rpartition("/")[2]] for name in start},
        lambda name, k: (0.2 - 0.18 * k / STEPS) * radius[name.rpartition("/")[2]],
        beta=0.2,
    )
    strict = jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")
    with jax.enable_x64(), strict[0], strict[1]:
        wide = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float64))
        layers = dm.layers_by_path(ORDER, EXACT)
        tx = dm.drop_muon(schedule, layers, sampling, key=KEY, momentum=0.8)
        found, _ = train(
            tx,
            wide(tree(0)),
            lambda x, k: jax.tree.map(
                lambda x, y, z: x - y + 0.3 * z, x, wide(tree(1)), wide(tree(100 + k))
            ),
            drawn if static else [None] * STEPS,
        )
    for k in range(STEPS):
        for name, x in by_name(found[k]).items():
            # The schedule is computed in float32.
            np.testing.assert_allclose(x, expected[k][name], rtol=1e-6, atol=1e-6)


def test_with_all_layers_it_is_gluon():
    arguments = {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}
    gluon = dm.gluon(0.1, LAYERS, **arguments)
    dropped = dm.drop_muon(0.1, LAYERS, dm.samplings.Full(), key=KEY, **arguments)
    gradient = lambda x, k: tree(10 + k)  # noqa: E731
    ours, _ = train(dropped, tree(0), gradient, [None] * 5)
    static, _ = train(dropped, tree(0), gradient, [(True,) * B] * 5)
    assert_equal(ours, static)
    for found, k in zip(ours, range(5), strict=True):
        updates = plain(gluon, tree(0), gradient, k + 1)
        # Two programs may fuse alike formulas differently: an ulp or two.
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6), found, updates
        )


def plain(tx, params, gradient, steps):
    state = tx.init(params)
    update = jit(tx.update)
    for k in range(steps):
        updates, state = update(gradient(params, k), state, params)
        params = optax.apply_updates(params, updates)
    return params


# Frozen is frozen, skipped is skipped.


@pytest.mark.parametrize("sampling", [NESTED, MIXED], ids=repr)
@every_separable_inner
def test_static_and_sampled_sets_agree_and_nan_gradients_of_frozen_layers_do_nothing(
    inner, sampling
):
    tx = dm.drop_layers(inner, LAYERS, sampling, key=KEY)
    drawn = sets(sampling, 4)
    gradient = lambda x, k: tree(10 + k)  # noqa: E731
    poisoned = lambda x, k: mask(tree(10 + k), drawn[k], jnp.nan)  # noqa: E731
    sampled = train(tx, tree(0), poisoned, [None] * 4)
    static = train(tx, tree(0), gradient, drawn)
    assert_close(sampled, static)
    types = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert types(sampled[1][-1]) == types(static[1][-1]) == types(tx.init(tree(0)))


@every_inner
@pytest.mark.parametrize("static", [True, False], ids=["static", "sampled"])
def test_what_is_frozen_stays_bit_for_bit(inner, static):
    tx = dm.drop_layers(inner, LAYERS, NESTED, key=jax.random.key(0))
    drawn = sets(NESTED, 3, jax.random.key(0))
    actives = drawn if static else [None] * 3
    params, states = train(tx, tree(0), lambda x, k: tree(10 + k), actives)
    frozen = [name for name in SHAPES if not drawn[-1][layer_of(name)]]
    for name in frozen:
        assert_equal(params[-1][name], params[-2][name])
    flat, _ = jax.tree_util.tree_flatten_with_path(states[-1])
    seen = set()
    for (path, x), y in zip(flat, jax.tree.leaves(states[-2]), strict=True):
        for name in frozen:
            if f"['{name}']" in jax.tree_util.keystr(path):
                np.testing.assert_array_equal(x, y)
                seen.add(name)
    assert seen == set(frozen) != set()
    assert states[-1].count == 3


@every_inner
def test_the_layers_that_move_go_as_if_alone(inner):
    # What moves is what `inner` makes of a tree in which there is nothing else.
    active = (False, True, False, True)
    tx = dm.drop_layers(inner, LAYERS, dm.samplings.Nice(2), key=KEY)
    found, _ = train(tx, tree(0), lambda x, k: tree(10 + k), [active] * 4)
    names = [name for name in SHAPES if active[layer_of(name)]]
    only = lambda t: {name: t[name] for name in names}  # noqa: E731
    if inner is INNERS["gluon"]:
        layers = dm.layers_by_path(order=None, geometry=QUICK)
        inner = dm.gluon(0.1, layers, weight_decay=0.1)
    alone = plain(inner, only(tree(0)), lambda x, k: only(tree(10 + k)), 4)
    for name in names:
        assert_close(found[-1][name], alone[name])


def count(tx, params, active):
    state = tx.init(params)
    update = lambda g, state, params: tx.update(g, state, params, active=active)  # noqa: E731
    return counters.count_primitives(update, params, state, params)


def test_a_static_set_leaves_no_oracle_of_frozen_layers_in_the_program():
    geometry = [("", dm.norms.Spectral(), 1.0)]
    layers = dm.layers_by_path(ORDER, geometry)
    tx = dm.drop_muon(0.1, layers, dm.samplings.Progressive(), key=KEY)
    full = count(tx, tree(0), (True,) * B)
    head = count(tx, tree(0), (False, False, False, True))
    oracle = dm.gluon(0.1, dm.layers_by_path(None, geometry))
    alone = count(
        dm.drop_layers(oracle, layers, dm.samplings.Full(), key=KEY),
        tree(0),
        (False, False, False, True),
    )
    assert full["dot_general"] > head["dot_general"] == alone["dot_general"] > 0
    assert head["cond"] == head["threefry2x32"] == head["random_fold_in"] == 0


@pytest.mark.parametrize(
    "sampling",
    [dm.samplings.Progressive(), dm.samplings.Independent((0.5,) * B)],
    ids=repr,
)
def test_sampled_oracles_are_behind_conditionals(sampling):
    calls = []

    def oracle(g):
        jax.debug.callback(lambda: calls.append(g.shape))
        return g

    inner = optax.stateless(lambda updates, _: jax.tree.map(oracle, updates))
    tx = dm.drop_layers(inner, LAYERS, sampling, key=KEY)
    state = tx.init(tree(0))
    update = jit(tx.update)
    for k in range(8):
        calls.clear()
        _, state = update(tree(k), state, tree(0))
        jax.effects_barrier()
        active = dm.active_layers(sampling, B, KEY, k)
        shapes = [
            x.shape
            for name, part in tree(0).items()
            if active[layer_of(name)]
            for x in part.values()
        ]
        assert sorted(calls) == sorted(shapes)


# Stacked leaves.


STACK = {
    "embed": (5, 4),
    "blocks": {"bias": (3, 4), "kernel": (3, 4, 4)},
    "head": (4, 5),
}


def stack_tree(seed):
    rng = np.random.default_rng(seed)
    make = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return jax.tree.map(make, STACK, is_leaf=lambda x: isinstance(x, tuple))


def unstack(params):
    blocks = {
        f"block_{j}": jax.tree.map(lambda x, j=j: x[j], params["blocks"])
        for j in range(3)
    }
    return {"embed": params["embed"], "head": params["head"], **blocks}


STACKED_INNERS = {
    "gluon": lambda layers: dm.gluon(0.1, layers, weight_decay=0.1),
    "muon": lambda layers: dm.muon(0.1, layers),
    "adamw": lambda layers: optax.adamw(0.1),
}


@pytest.mark.parametrize(
    ("name", "sampling"),
    [("gluon", NESTED), ("muon", MIXED), ("adamw", NESTED), ("adamw", MIXED)],
    ids=repr,
)
def test_a_stacked_leaf_goes_like_the_layers_it_stacks(name, sampling):
    geometry = [("", dm.norms.Frobenius(), 1.0)]
    stacked = dm.layers_by_path(
        order=["embed", "blocks", "head"], geometry=geometry, stacked="blocks"
    )
    apart = dm.layers_by_path(ORDER, geometry)
    ends = []
    for layers, change in ((stacked, lambda x: x), (apart, unstack)):
        inner = STACKED_INNERS[name](layers)
        tx = dm.drop_layers(inner, layers, sampling, key=KEY)
        drawn = [dm.active_layers(sampling, 5, KEY, k) for k in range(3)]
        gradient = lambda x, k, change=change: change(stack_tree(10 + k))  # noqa: E731
        for actives in (drawn, [None] * 3):
            end, _ = train(tx, change(stack_tree(0)), gradient, actives)
            ends.append(unstack(end[-1]) if "blocks" in end[-1] else end[-1])
    for end in ends[1:]:
        assert_close(end, ends[0], rtol=1e-5)


def test_frozen_rows_of_a_stacked_leaf_stay_and_do_not_reach_the_oracle():
    layers = dm.layers_by_path(order=["embed", "blocks", "head"], stacked="blocks")
    shapes = []

    def look(updates, _):
        shapes.extend(jax.tree.leaves(jax.tree.map(jnp.shape, updates["blocks"])))
        return updates

    inner = optax.chain(optax.stateless(look), dm.gluon(0.1, layers))
    sampling = dm.samplings.Nice(3)
    tx = dm.drop_layers(inner, layers, sampling, key=KEY)
    active = (True, False, True, False, True)
    g = stack_tree(1)
    g["blocks"] = jax.tree.map(
        lambda x: x.at[jnp.array([0, 2])].set(jnp.nan), g["blocks"]
    )
    updates, state = tx.update(g, tx.init(g), stack_tree(0), active=active)
    momentum = optax.tree.get(state, "momentum")
    assert shapes == [1, 4, 1, 4, 4]
    for x in (*updates["blocks"].values(), *momentum["blocks"].values()):
        assert not np.asarray(x)[[0, 2]].any()
        assert np.asarray(x)[1].all()
    assert updates["head"].all()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_part_of_a_stacked_leaf_moves_on_a_mesh(kind):
    layers = dm.layers_by_path(order=["embed", "blocks", "head"], stacked="blocks")
    tx = dm.drop_muon(0.1, layers, dm.samplings.Nice(3), key=KEY)
    step = jax.jit(
        lambda g, params: tx.update(
            g, tx.init(params), params, active=(False, True, False, True, True)
        )[0]
    )
    expected = step(stack_tree(1), stack_tree(0))
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    specs = {"embed": P(None, "x"), "head": P("x")}
    specs["blocks"] = {"bias": P(None, "x"), "kernel": P(None, "x")}
    where = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda spec: isinstance(spec, P),
    )
    found = step(*jax.device_put((stack_tree(1), stack_tree(0)), (where, where)))
    assert_close(found, expected, rtol=1e-4)
    assert not np.asarray(found["blocks"]["kernel"])[1].any()


def test_a_truncated_loop_is_the_plain_one_with_a_program_for_each_cutoff():
    sampling, num_traces = dm.samplings.Progressive(), 0
    tx = dm.drop_muon(0.02, LAYERS, sampling, key=KEY)

    def loss(params, x):
        h = x @ params["embed"]["table"]
        for block in ("block_0", "block_1"):
            h = jnp.tanh(h @ params[block]["kernel"] + params[block]["bias"])
        return jnp.mean((h @ params["head"]["kernel"] - x) ** 2)

    @functools.partial(jit, static_argnames="active", donate_argnums=(0, 1))
    def train_step(params, state, x, active=None):
        nonlocal num_traces
        num_traces += 1
        value, grads = dm.value_and_grad(loss, LAYERS)(params, x, active=active)
        updates, state = tx.update(grads, state, params, active=active)
        return optax.apply_updates(params, updates), state, value

    x, ends = jnp.eye(6), []
    for static in (True, False):
        params, losses = tree(0), []
        state = tx.init(params)
        for step in range(30):
            active = dm.active_layers(sampling, B, KEY, step) if static else None
            params, state, value = train_step(params, state, x, active=active)
            losses.append(value)
        assert losses[-1] < losses[0] / 2
        ends.append(params)
    assert_close(*ends)
    assert num_traces == B + 1


# Where it stands: chains, partitions, accumulation, injected hyperparameters, modules.


def test_one_draw_for_each_optimizer_step_under_accumulation():
    sampling = dm.samplings.Progressive()
    tx = dm.drop_muon(0.1, LAYERS, sampling, key=KEY)
    multi = optax.MultiSteps(tx, 3).gradient_transformation()
    mean = lambda x, k: jax.tree.map(  # noqa: E731
        lambda *g: sum(g) / 3, *[tree(3 * k + j) for j in range(3)]
    )
    expected, _ = train(tx, tree(0), mean, [None] * 4)
    drawn = sets(sampling, 4)
    for actives in ([None] * 12, [active for active in drawn for _ in range(3)]):
        found, states = train(multi, tree(0), lambda x, k: tree(k), actives)
        assert_close(found[2::3], expected)
        assert optax.tree.get(states[-1], "inner_opt_state").count == 4


@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
def test_hyperparameters_can_be_injected(raw):
    key = jax.random.key_data(KEY) if raw else KEY
    make = optax.inject_hyperparams(dm.drop_muon, static_args=("layers",))
    sampling = dm.samplings.Progressive()
    tx = make(0.1, LAYERS, sampling, key=key)
    direct = dm.drop_muon(0.1, LAYERS, sampling, key=KEY)
    gradient = lambda x, k: tree(10 + k)  # noqa: E731
    found, states = train(tx, tree(0), gradient, [None] * 3)
    assert_close(found, train(direct, tree(0), gradient, sets(sampling, 3))[0])
    assert states[-1].hyperparams["learning_rate"] == np.float32(0.1)


def test_in_a_chain_and_a_partition():
    sampling = dm.samplings.Progressive()
    labels = {name: "rest" if name == "head" else "drop" for name in SHAPES}
    layers = dm.layers_by_path(ORDER)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {
                "drop": dm.drop_muon(0.1, layers, sampling, key=KEY, num_layers=B),
                "rest": optax.sgd(0.1),
            },
            labels,
        ),
    )
    drawn = sets(sampling, 5)
    gradient = lambda x, k: tree(10 + k)  # noqa: E731
    static, _ = train(tx, tree(0), gradient, drawn)
    assert_close(train(tx, tree(0), gradient, [None] * 5)[0], static)
    previous = tree(0)
    for active, params in zip(drawn, static, strict=True):
        for name in SHAPES:
            moved = not np.array_equal(
                jax.tree.leaves(params[name])[-1], jax.tree.leaves(previous[name])[-1]
            )
            assert moved == (name == "head" or active[layer_of(name)])
        previous = params


def test_the_state_maps_like_the_parameters():
    tx = dm.drop_layers(optax.adam(0.1), LAYERS, dm.samplings.Progressive(), key=KEY)
    state = tx.init(tree(0))
    ones = optax.tree_map_params(tx, jnp.ones_like, state)
    assert all((x == 1).all() for x in jax.tree.leaves(optax.tree.get(ones, "mu")))
    assert ones.count == 0
    assert_equal(ones.key, state.key)


def test_a_model_of_nnx_under_its_optimizer():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 4, rngs=rngs)
            self.second = nnx.Linear(4, 2, rngs=rngs)

    model = Model(nnx.Rngs(0))
    layers = dm.layers_by_path(order=["first", "second"])
    tx = dm.drop_muon(0.1, layers, dm.samplings.RoundRobin(), key=KEY)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for active in (None, (False, True)):
        before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
        grads = jax.tree.map(jnp.ones_like, before)
        extra = {} if active is None else {"active": active}
        optimizer.update(model, grads, **extra)
        after = nnx.state(model, nnx.Param)
        for name, moves in zip(
            ("first", "second"), active or (True, False), strict=True
        ):
            same = np.array_equal(
                after[name]["kernel"][...], before[name]["kernel"][...]
            )
            assert same != moves


def test_a_module_of_equinox():
    model = eqx.nn.MLP(3, 2, 4, depth=1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_array)
    layers = dm.layers_by_path(order=[r"layers/(\d+)"])
    tx = dm.drop_muon(0.1, layers, dm.samplings.Progressive(), key=KEY)
    updates, _ = tx.update(params, tx.init(params), params, active=(False, True))
    assert not updates.layers[0].weight.any()
    assert updates.layers[1].weight.all()


# Keys, checkpoints, donation.


@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
def test_the_key_never_advances(raw):
    key = jax.random.key_data(KEY) if raw else KEY
    tx = dm.drop_muon(0.1, LAYERS, dm.samplings.Progressive(), key=key)
    found, states = train(tx, tree(0), lambda x, k: tree(10 + k), [None] * 4)
    typed = dm.drop_muon(0.1, LAYERS, dm.samplings.Progressive(), key=KEY)
    assert_equal(found, train(typed, tree(0), lambda x, k: tree(10 + k), [None] * 4)[0])
    assert_equal(states[-1].key, jax.random.key_data(KEY))
    assert states[-1].count == 4


def test_training_resumes_with_the_same_sets(tmp_path):
    tx = dm.drop_muon(0.1, LAYERS, dm.samplings.Nice(2), key=KEY)
    update = jit(tx.update)
    params, state = tree(0), tx.init(tree(0))
    for k in range(3):
        updates, state = update(tree(k), state, params)
        params = optax.apply_updates(params, updates)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", (params, state))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", (params, state))
    for k in range(3, 6):
        updates, state = update(tree(k), state, params)
        params = optax.apply_updates(params, updates)
        updates, other = update(tree(k), restored[1], restored[0])
        restored = (optax.apply_updates(restored[0], updates), other)
    assert_equal(restored, (params, state))


def test_donating_the_state_leaves_the_key_to_its_owner():
    for key in (jax.random.key(1), jax.random.PRNGKey(1)):
        tx = dm.drop_layers(optax.sgd(0.1), LAYERS, dm.samplings.Progressive(), key=key)
        for init in (tx.init, jit(tx.init)):
            state = init(tree(0))
            jit(tx.update, donate_argnums=1)(tree(1), state, tree(0))
            assert state.key.is_deleted()
        assert dm.active_layers(dm.samplings.Progressive(), B, key, 0)[-1]
        tx.init(tree(0))


# Bad input.


@pytest.mark.parametrize(
    ("active", "message"),
    [
        ((True,) * 3, "one bool for each of 4 layers"),
        ((True,) * 5, "one bool for each of 4 layers"),
        ((False,) * 4, "at least one layer that moves"),
        ((1, 0, 1, 1), "must be a tuple of bools"),
        ((True, True, True, None), "must be a tuple of bools"),
        (jnp.ones(4, bool), "must be a tuple of bools"),
        ("True", "must be a tuple of bools"),
    ],
)
def test_other_active_sets_are_refused(active, message):
    tx = dm.drop_muon(0.1, LAYERS, dm.samplings.Progressive(), key=KEY)
    state = tx.init(tree(0))
    with pytest.raises(ValueError, match=message):
        tx.update(tree(1), state, tree(0), active=active)


def test_a_traced_active_set_is_refused():
    tx = dm.drop_muon(0.1, LAYERS, dm.samplings.Progressive(), key=KEY)
    state = tx.init(tree(0))
    with pytest.raises(ValueError, match="static under jit"):
        jax.jit(lambda a: tx.update(tree(1), state, tree(0), active=a))((True,) * 4)


def test_where_sets_can_be_empty_an_empty_one_moves_the_counters_alone():
    sampling = dm.samplings.Independent((0.5,) * B)
    tx = dm.drop_layers(optax.adam(0.1), LAYERS, sampling, key=KEY)
    state = tx.init(tree(0))
    updates, state = tx.update(tree(1), state, tree(0), active=(False,) * B)
    assert not any(x.any() for x in jax.tree.leaves(updates))
    assert not any(x.any() for x in jax.tree.leaves(optax.tree.get(state, "mu")))
    assert state.count == state.inner[0].count == 1


def gap(params):
    index = iter((0, 1, 1, 2, 2, 4))
    return jax.tree.map(lambda _: dm.Layer(next(index), None), params)


@pytest.mark.parametrize(
    ("layers", "sampling", "message"),
    [
        (
            dm.layers_by_path(None),
            dm.samplings.Full(),
            "must have a layer with an index",
        ),
        (gap, dm.samplings.Full(), "without a gap"),
        (lambda params: {}, dm.samplings.Full(), "`layers` must return a tree"),
        (LAYERS, dm.samplings.Progressive((0.5, 0.5)), "for each of 4 layers"),
        (LAYERS, dm.samplings.Independent((0.5, 0.5)), "for each of 4 layers"),
        (LAYERS, dm.samplings.Nice(5), "at most the 4 layers"),
    ],
)
def test_layers_and_samplings_that_do_not_fit_are_refused(layers, sampling, message):
    tx = dm.drop_layers(optax.sgd(0.1), layers, sampling, key=KEY)
    with pytest.raises(ValueError, match=message):
        tx.init(tree(0))


def test_more_layers_than_said_are_refused():
    tx = dm.drop_layers(SGD, LAYERS, dm.samplings.Full(), key=KEY, num_layers=3)
    with pytest.raises(ValueError, match="`num_layers` must be at least the 4 layers"):
        tx.init(tree(0))


def test_a_state_that_mixes_parameters_is_refused():
    flat = optax.flatten(optax.sgd(0.1, momentum=0.9))
    tx = dm.drop_layers(flat, LAYERS, dm.samplings.Progressive(), key=KEY)
    state = tx.init(tree(0))
    with pytest.raises(ValueError, match="`inner` must keep the state of each"):
        tx.update(tree(1), state, tree(0), active=(False, False, False, True))


def test_a_key_that_is_none_is_refused():
    for key in (jax.random.key(0, impl="rbg"), 0):
        with pytest.raises(ValueError, match="`key` must be one Threefry key"):
            dm.drop_muon(0.1, LAYERS, dm.samplings.Full(), key=key)


def test_a_tree_without_a_layer_is_refused_by_name():
    layer = dm.Stacked(0, dm.norms.RMS(), view=dm.View((), (0,)))
    tx = dm.drop_muon(1.0, lambda params: {"a": layer}, dm.samplings.Full(), key=KEY)
    with pytest.raises(ValueError, match=r"stacked over none, such as 'a' of shape"):
        tx.init({"a": jnp.zeros((0, 4))})
