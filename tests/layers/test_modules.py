"""Modules of nnx, linen and Equinox: what is differentiated, and what else moves."""

import functools
import itertools
import re
import subprocess
import sys

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import dropmuon_optax as dm
from dropmuon_optax.counters import count_flops

KEY = jax.random.key(0)
SAMPLING = dm.samplings.Progressive()
LAYERS = dm.layers_by_path([r"blocks/(\d)", "head"])
SETS = list(itertools.product([False, True], repeat=3))[1:]
every_set = pytest.mark.parametrize(
    "active", SETS, ids=lambda a: "".join("01"[x] for x in a)
)
every_suffix = pytest.mark.parametrize(
    "active", [s for s in SETS if sorted(s) == list(s)], ids=lambda a: str(sum(a))
)
pytestmark = pytest.mark.usefixtures("standard_promotion")

X = np.random.default_rng(0).normal(size=(6, 6, 6, 2)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)


class Calls(nnx.Variable):
    """A variable of the user's own: how often the model was called."""


class Block(nnx.Module):
    def __init__(self, fan_in, fan_out, rngs, dtype):
        options = {"rngs": rngs, "param_dtype": dtype}
        # No bias: under a BatchNorm its gradient is rounding alone.
        self.conv = nnx.Conv(fan_in, fan_out, (3, 3), use_bias=False, **options)
        self.norm = nnx.BatchNorm(fan_out, **options)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x, frozen=False):
        x = self.norm(self.conv(x), use_running_average=frozen)
        return self.dropout(nnx.relu(x))


class Net(nnx.Module):
    def __init__(self, dtype=jnp.float32):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List(
            [Block(2, 4, rngs, dtype), Block(4, 5, rngs, jnp.float32)]
        )
        self.head = nnx.Linear(5, 3, rngs=rngs)
        self.calls = Calls(jnp.zeros(()))

    def __call__(self, x, frozen=(False, False)):
        self.calls[...] += 1.0
        for block, rests in zip(self.blocks, frozen, strict=True):
            x = block(x, rests)
        return self.head(x.mean((1, 2)))


def loss_of(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, arrays(found), arrays(expected))


def assert_close(found, expected):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )


def arrays(tree):
    """With typed keys as their words."""

    def words(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    return jax.tree.map(words, tree)


def rest_of(model):
    """All that is no parameter, as arrays by their paths."""
    return arrays(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param))))


def layer_of(path):
    return int(path[1]) if path[0] == "blocks" else 2


def assert_zeroed(grads, full, active):
    """`grads` is `full` in the layers that move, and zeros in the others."""
    assert jax.tree.structure(grads) == jax.tree.structure(full)
    pairs = zip(nnx.to_flat_state(grads), nnx.to_flat_state(full), strict=True)
    for (path, found), (other, expected) in pairs:
        assert path == other
        assert type(found) is type(expected) is nnx.Param
        found, expected = found[...], expected[...]
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        if active[layer_of(path)]:
            assert_close(found, expected)
        else:
            assert not found.any()


# Flax nnx: `nnx.value_and_grad` is the oracle.


@functools.cache
def full_step():
    """After two steps of `nnx.value_and_grad`: values, gradients, and all state."""
    model = Net()
    gradient = nnx.jit(nnx.value_and_grad(loss_of))
    results = [gradient(model, X, Y) for _ in range(2)]
    return results, rest_of(model)


@every_set
def test_nnx_in_every_set(active):
    results, rest = full_step()
    model, num_traces = Net(), 0

    @functools.partial(nnx.jit, static_argnames="active")
    def gradient(model, x, y, active):
        nonlocal num_traces
        num_traces += 1
        return dm.value_and_grad(loss_of, LAYERS)(model, x, y, active=active)

    for expected, full in results:
        value, grads = gradient(model, X, Y, active)
        assert_close(value, expected)
        assert_zeroed(grads, full, active)
    # Batch statistics, the counters of Dropout, and the variable of the user's own.
    assert_close(rest_of(model), rest)
    assert rest["calls"] == 2
    assert num_traces == 1


def test_nnx_has_a_new_mask_in_each_step():
    results, _ = full_step()
    assert results[0][0] != results[1][0]
    model = Net()
    gradient = nnx.jit(functools.partial(dm.value_and_grad(loss_of, LAYERS)))
    assert_close([gradient(model, X, Y)[0] for _ in range(2)], [v for v, _ in results])


def test_nnx_without_a_set_and_without_jit():
    model, other = Net(), Net()
    value, grads = dm.value_and_grad(loss_of, LAYERS)(model, X, Y)
    expected, full = nnx.value_and_grad(loss_of)(other, X, Y)
    assert value == expected
    assert_zeroed(grads, full, (True,) * 3)
    assert_equal(grads, full)
    assert_equal(rest_of(model), rest_of(other))


def test_nnx_split_and_merged_under_jax_jit():
    active = (False, True, True)
    results, rest = full_step()
    graphdef, state = nnx.split(Net())

    @jax.jit
    def gradient(state):
        model = nnx.merge(graphdef, state)
        found = dm.value_and_grad(loss_of, LAYERS)(model, X, Y, active=active)
        return found, nnx.state(model)

    for expected, full in results:
        (value, grads), state = gradient(state)
        assert_close(value, expected)
        assert_zeroed(grads, full, active)
    assert_close(rest_of(nnx.merge(graphdef, state)), rest)


TRANSFORMATIONS = {
    "drop_muon": dm.drop_muon(0.02, LAYERS, SAMPLING, key=KEY),
    "adamw": dm.drop_layers(optax.adamw(0.01), LAYERS, SAMPLING, key=KEY),
    "muon": dm.drop_layers(dm.muon(0.02), LAYERS, SAMPLING, key=KEY),
}


@pytest.mark.parametrize("through", ["nnx.jit", "jax.jit"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_nnx_optimizer_in_three_lines(name, through):
    tx = TRANSFORMATIONS[name]
    model = Net()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def update(model, optimizer, active):
        loss, grads = dm.value_and_grad(loss_of, LAYERS)(model, X, Y, active=active)
        optimizer.update(model, grads, active=active)
        return loss

    if through == "nnx.jit":
        step = nnx.jit(update, static_argnames="active")
    else:

        @functools.partial(jax.jit, static_argnums=(0, 2))
        def pure(graphdef, state, active):
            model, optimizer = nnx.merge(graphdef, state)
            loss = update(model, optimizer, active)
            return loss, nnx.state((model, optimizer))

        def step(model, optimizer, active):
            graphdef, state = nnx.split((model, optimizer))
            loss, state = pure(graphdef, state, active)
            nnx.update((model, optimizer), state)
            return loss

    # The oracle: full gradients by nnx, and Optax on plain dictionaries.
    other = Net()
    params = nnx.to_pure_dict(nnx.state(other, nnx.Param))
    state = tx.init(params)
    full = nnx.jit(nnx.value_and_grad(loss_of))
    plain = jax.jit(tx.update, static_argnames="active")
    for active in [(False, True, True), (False, False, True)]:
        before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        before = jax.tree.map(np.asarray, before)
        loss = step(model, optimizer, active)
        expected, grads = full(other, X, Y)
        updates, state = plain(nnx.to_pure_dict(grads), state, params, active=active)
        params = optax.apply_updates(params, updates)
        nnx.update(other, params)
        found = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        assert_close(loss, expected)
        assert_close(found, params)
        assert_equal(found["blocks"][0], before["blocks"][0])  # frozen
    assert_close(rest_of(model), rest_of(other))


@every_suffix
def test_nnx_programs_are_as_short_as_cut_by_hand(active):
    graphdef, state = nnx.split(Net())

    def truncated(state):
        model = nnx.merge(graphdef, state)
        found = dm.value_and_grad(loss_of, LAYERS)(model, X, Y, active=active)
        return found, nnx.state(model, nnx.Not(nnx.Param))

    def by_hand(state):
        def moves(path, value):
            return isinstance(value, nnx.Param) and active[layer_of(path)]

        graphdef_, moving, rest = nnx.split(nnx.merge(graphdef, state), moves, ...)

        def loss(moving):
            model = nnx.merge(graphdef_, moving, rest, copy=True)
            return loss_of(model, X, Y), nnx.state(model, nnx.Not(nnx.Param))

        return jax.value_and_grad(loss, has_aux=True)(moving)

    flops = [count_flops(f, state) for f in (truncated, by_hand)]
    assert flops[0] == pytest.approx(flops[1], rel=0.02)


def test_nnx_flops_fall_with_the_cutoff():
    graphdef, state = nnx.split(Net())

    def flops(active):
        def truncated(state):
            model = nnx.merge(graphdef, state)
            return dm.value_and_grad(loss_of, LAYERS)(model, X, Y, active=active)

        return count_flops(truncated, state)

    full, middle, least = map(flops, [SETS[-1], SETS[2], SETS[0]])
    assert full > 1.2 * middle > 1.2 * least


def test_nnx_auxiliary_values_and_further_arguments():
    def loss(model, x, rngs, *, scale):
        noise = jax.random.normal(rngs.noise(), x.shape)
        return scale * loss_of(model, x + noise, Y), {"mean": x.mean()}

    active = (False, False, True)
    model, rngs = Net(), nnx.Rngs(noise=1)
    (value, aux), grads = dm.value_and_grad(loss, LAYERS, has_aux=True)(
        model, X, rngs, scale=2.0, active=active
    )
    other, others = Net(), nnx.Rngs(noise=1)
    (expected, _), full = nnx.value_and_grad(
        lambda *args: loss(*args, scale=2.0), has_aux=True
    )(other, X, others)
    assert_close(value, expected)
    assert_zeroed(grads, full, active)
    assert aux["mean"] == X.mean()
    assert rngs.noise.count[...] == others.noise.count[...] == 1


def test_nnx_variables_that_come_into_being():
    class Kept(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            self.inputs = nnx.Intermediate(x)
            return self.dense(x)

    model, other = Kept(), Kept()
    layers = dm.layers_by_path(["dense"])
    dm.value_and_grad(loss_of, layers)(model, Y, Y, active=(True,))
    nnx.value_and_grad(loss_of)(other, Y, Y)
    assert_equal(rest_of(model), rest_of(other))
    assert list(rest_of(model)) == ["inputs"]


def test_nnx_parameters_used_twice():
    class Tied(nnx.Module):
        def __init__(self):
            self.body = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.embed = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(1))
            self.output = self.embed

        def __call__(self, x):
            return self.output(jnp.tanh(self.body(self.embed(x))))

    layers = dm.layers_by_path(["embed", "body"])
    full = nnx.grad(loss_of)(Tied(), Y, Y)
    for active in [(True, False), (False, True)]:
        _, grads = dm.value_and_grad(loss_of, layers)(Tied(), Y, Y, active=active)
        assert jax.tree.structure(grads) == jax.tree.structure(full)
        for name, moves in zip(("embed", "body"), active, strict=True):
            assert_close(
                grads[name], jax.tree.map(lambda g, m=moves: m * g, full[name])
            )


def test_nnx_lists_of_modules():
    modules = nnx.List([Net().head, Net().head])
    _, grads = dm.value_and_grad(
        lambda both, x: jnp.sum(both[0](x) + both[1](x)),
        dm.layers_by_path([r"^(\d)"]),
    )(modules, jnp.ones((2, 5)), active=(False, True))
    assert not grads[0]["bias"][...].any()
    assert (grads[1]["bias"][...] == 2).all()


def test_nnx_rows_of_a_stack():
    class Stack(nnx.Module):
        def __init__(self):
            self.rows = nnx.Param(jnp.ones((3, 2, 2)))

        def __call__(self, x):
            for j in range(3):
                x = x @ self.rows[j]
            return x

    layers = dm.layers_by_path(["rows"], stacked="rows")
    x = jnp.ones((1, 2))
    _, grads = dm.value_and_grad(lambda m: m(x).sum(), layers)(
        Stack(), active=(True, False, True)
    )
    full = nnx.grad(lambda m: m(x).sum())(Stack())
    assert_equal(grads["rows"][...][1], jnp.zeros((2, 2)))
    assert_equal(grads["rows"][...][::2], full["rows"][...][::2])


def test_nnx_zeros_have_the_parameters_dtype():
    model = Net(jnp.bfloat16)
    _, grads = dm.value_and_grad(loss_of, LAYERS)(
        model, X, Y, active=(False, False, True)
    )
    frozen = nnx.to_pure_dict(grads)["blocks"][0]
    assert {g.dtype for g in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}


def test_frozen_batch_statistics_move_unless_they_are_used():
    active = (False, True, True)

    @functools.partial(nnx.jit, static_argnums=1)
    def step(model, frozen):
        def loss(model):
            return jnp.mean((model(X, frozen) - Y) ** 2)

        return dm.value_and_grad(loss, LAYERS)(model, active=active)

    def mean(frozen):
        model = Net()
        step(model, frozen)
        return [np.asarray(block.norm.mean[...]) for block in model.blocks]

    moved = mean((False, False))
    assert all(x.any() for x in moved)
    kept = mean((True, False))
    assert not kept[0].any()
    assert kept[1].any()


@pytest.mark.parametrize("flag", ["nnx_graph_mode", "nnx_graph_updates"])
def test_nnx_under_flax_s_other_defaults(flag):
    results, _ = full_step()
    active = (False, True, True)
    model = Net()
    flax.config.update(flag, False)
    try:
        gradient = dm.value_and_grad(loss_of, LAYERS)
        for expected, full in results:
            value, grads = gradient(model, X, Y, active=active)
            assert_close(value, expected)
            assert_zeroed(grads, full, active)
    finally:
        flax.config.update(flag, True)


# Flax linen: `jax.value_and_grad` of the parameters is the oracle.


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, frozen=(False, False)):
        for i, rests in enumerate(frozen):
            x = nn.Conv(4, (3, 3), use_bias=False, name=f"conv_{i}")(x)
            x = nn.BatchNorm(use_running_average=rests, name=f"norm_{i}")(x)
            x = nn.Dropout(0.3, deterministic=False)(nn.relu(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


LINEN_LAYERS = dm.layers_by_path([r"_(\d)", "head"])


class TrainState(train_state.TrainState):
    """The recipe of `value_and_grad`."""

    batch_stats: object = None

    def apply_gradients(self, *, grads, active=None, **changes):
        updates, opt_state = self.tx.update(
            grads, self.opt_state, self.params, active=active
        )
        params = optax.apply_updates(self.params, updates)
        changes |= {"params": params, "opt_state": opt_state}
        return self.replace(step=self.step + 1, **changes)


class PlainTrainState(train_state.TrainState):
    batch_stats: object = None


@functools.cache
def linen_variables():
    keys = {"params": KEY, "dropout": KEY}
    return jax.jit(Linen().init)(keys, X)


def linen_state(cls):
    variables = linen_variables()
    tx = dm.drop_muon(0.02, LINEN_LAYERS, SAMPLING, key=KEY)
    return cls.create(
        apply_fn=Linen().apply,
        params=variables["params"],
        tx=tx,
        batch_stats=variables["batch_stats"],
    )


def linen_loss(params, state, key):
    out, new = state.apply_fn(
        {"params": params, "batch_stats": state.batch_stats},
        X,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    return jnp.mean((out - Y) ** 2), new["batch_stats"]


@pytest.mark.parametrize("hands_on", [True, False])
def test_linen_train_state(hands_on):
    state = linen_state(TrainState if hands_on else PlainTrainState)

    @functools.partial(jax.jit, static_argnames="active")
    def step(state, key, active):
        gradient = dm.value_and_grad(linen_loss, LINEN_LAYERS, has_aux=True)
        (loss, stats), grads = gradient(state.params, state, key, active=active)
        more = {"active": active} if hands_on else {}
        return state.apply_gradients(grads=grads, batch_stats=stats, **more), loss

    other = linen_state(PlainTrainState)

    @functools.partial(jax.jit, static_argnames="active")
    def oracle(state, key, active):
        gradient = jax.value_and_grad(linen_loss, has_aux=True)
        (loss, stats), grads = gradient(state.params, state, key)
        updates, opt_state = state.tx.update(
            grads, state.opt_state, state.params, active=active
        )
        params = optax.apply_updates(state.params, updates)
        return other.replace(
            step=state.step + 1, params=params, opt_state=opt_state, batch_stats=stats
        ), loss

    for k in range(3):
        active = dm.active_layers(SAMPLING, 3, KEY, k)
        key = jax.random.fold_in(KEY, k)
        before = state
        state, loss = step(state, key, active)
        other, expected = oracle(other, key, active)
        assert_close(loss, expected)
        assert_close(state.params, other.params)
        assert_close(state.batch_stats, other.batch_stats)
        for i, moves in enumerate(active[:2]):
            old, new = before.params[f"conv_{i}"], state.params[f"conv_{i}"]
            assert np.array_equal(old["kernel"], new["kernel"]) != moves
            stats = [s.batch_stats[f"norm_{i}"]["mean"] for s in (before, state)]
            assert not np.array_equal(*stats)  # of frozen layers too
    assert state.step == 3


def test_linen_train_state_by_itself_refuses_active():
    state = linen_state(PlainTrainState)
    with pytest.raises(TypeError, match="active"):
        state.apply_gradients(grads=state.params, active=(True,) * 3)


# Equinox: `eqx.filter_value_and_grad` is the oracle.


class Equinox(eqx.Module):
    """With a function, counters and switches for leaves."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    activation: object
    head: eqx.nn.Linear
    count: jax.Array

    def __init__(self):
        keys = jax.random.split(KEY)
        self.conv = eqx.nn.Conv2d(2, 4, 3, use_bias=False, key=keys[0])
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="ema")
        self.dropout = eqx.nn.Dropout(0.3)
        self.activation = jax.nn.relu
        self.head = eqx.nn.Linear(4, 3, key=keys[1])
        self.count = jnp.array(7)

    def __call__(self, x, state, key):
        x, state = self.norm(self.conv(x), state)
        x = self.dropout(self.activation(x), key=key)
        return self.head(x.mean((1, 2))), state


EQX_LAYERS = dm.layers_by_path(["conv|norm", "head"])


def eqx_loss(model, state, key):
    apply = jax.vmap(model, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch")
    out, state = apply(X.transpose(0, 3, 1, 2), state, jax.random.split(key, len(X)))
    return jnp.mean((out - Y) ** 2), state


@pytest.mark.parametrize("active", [(True, True), (True, False), (False, True), None])
def test_equinox_modules(active):
    model, state = eqx.nn.make_with_state(Equinox)()

    @eqx.filter_jit
    def gradient(model, state):
        cut = dm.value_and_grad(eqx_loss, EQX_LAYERS, has_aux=True)
        return cut(model, state, KEY, active=active)

    (value, stats), grads = gradient(model, state)
    full = eqx.filter_jit(eqx.filter_value_and_grad(eqx_loss, has_aux=True))
    (expected, expected_stats), full_grads = full(model, state, KEY)
    assert_close(value, expected)
    assert_close(stats, expected_stats)
    assert jax.tree.structure(grads) == jax.tree.structure(full_grads)
    assert grads.activation is grads.count is None
    moves = active or (True, True)
    for name, on in zip(("conv", "norm", "head"), (moves[0], *moves), strict=True):
        zeroed = jax.tree.map(lambda g, on=on: on * g, getattr(full_grads, name))
        assert_close(getattr(grads, name), zeroed)


@pytest.mark.parametrize("name", ["drop_muon", "adamw", "muon", "scion"])
def test_equinox_trains(name):
    tx = {
        "drop_muon": dm.drop_muon(0.02, EQX_LAYERS, SAMPLING, key=KEY),
        "adamw": dm.drop_layers(optax.adamw(0.01), EQX_LAYERS, SAMPLING, key=KEY),
        "muon": dm.drop_layers(dm.muon(0.02), EQX_LAYERS, SAMPLING, key=KEY),
        "scion": dm.drop_layers(dm.scion(0.02), EQX_LAYERS, SAMPLING, key=KEY),
    }[name]
    model, state = eqx.nn.make_with_state(Equinox)()
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    before, active = model, (False, True)

    @eqx.filter_jit
    def step(model, state, opt_state):
        cut = dm.value_and_grad(eqx_loss, EQX_LAYERS, has_aux=True)
        (_, state), grads = cut(model, state, KEY, active=active)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = tx.update(grads, opt_state, params, active=active)
        return eqx.apply_updates(model, updates), state, opt_state

    model, state, opt_state = step(model, state, opt_state)
    assert model.activation is before.activation
    assert model.count == 7
    assert_equal(model.conv, before.conv)
    assert not np.array_equal(model.head.weight, before.head.weight)


# What is refused, and with what line.

PARAM, WHOLE = "write `nnx.state(model, nnx.Param)`", "write `variables"
FILTER = "write `eqx.filter"


def statistics(path):
    return f"{path}' must be a parameter, got a statistic of a BatchNorm"


class Mine(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.ones((2, 2)))
        self.calls = Calls(jnp.zeros(()))


REFUSED = {
    "nnx module": (lambda: Net(), f"got the nnx module Net; {PARAM}"),
    "nnx modules in a dict": (
        lambda: {"a": Net().head, "b": Net().head},
        "of several modules in one `nnx.Dict`",
    ),
    "nnx state": (
        lambda: nnx.state(Net().blocks[0].norm),
        f"'mean' must be a parameter, got a BatchStat; {PARAM}",
    ),
    "nnx statistics alone": (
        lambda: nnx.state(Net(), nnx.BatchStat),
        "'blocks/0/norm/mean' must be a parameter, got a BatchStat",
    ),
    "nnx random streams": (
        lambda: nnx.state(Net().blocks[0].dropout),
        "'rngs/count' must be a parameter, got a RngCount",
    ),
    "nnx variables of one's own": (
        lambda: nnx.state(Mine()),
        f"'calls' must be a parameter, got a Calls; {PARAM}",
    ),
    "nnx state without types": (
        lambda: nnx.to_pure_dict(nnx.state(Net().blocks[0].norm)),
        statistics("mean"),
    ),
    "linen variables": (
        linen_variables,
        "'batch_stats/norm_0/mean' must be a parameter, got one of the collection "
        f"'batch_stats'; {WHOLE}",
    ),
    "linen variables, frozen": (
        lambda: flax.core.freeze(linen_variables()),
        "'batch_stats/norm_0/mean' must be a parameter",
    ),
    "linen variables, nested": (
        lambda: {"encoder": linen_variables()},
        "'encoder/batch_stats/norm_0/mean' must be a parameter",
    ),
    "linen collection of one's own": (
        lambda: {"params": {"a": jnp.ones(2)}, "moments": {"a": jnp.ones(2)}},
        "'moments/a' must be a parameter, got one of the collection 'moments'",
    ),
    "linen module": (lambda: nn.Dense(3), "must be an array to be a parameter"),
    "statistics as in PyTorch": (
        lambda: {"norm": {"weight": jnp.ones(2), "running_mean": jnp.ones(2)}},
        statistics("norm/running_mean"),
    ),
    "a string": (lambda: {"a": "b"}, "'a' must be an array to be a parameter, got 'b'"),
}
EQUINOX = {
    "equinox module": (
        lambda: eqx.nn.make_with_state(Equinox)()[0],
        f"'norm/axis_name' must be an inexact array … got 'batch'; {FILTER}",
    ),
    "equinox module in a dict": (
        lambda: {"a": eqx.nn.Linear(2, 2, key=KEY), "f": jax.nn.relu},
        f"'f' must be an inexact array … {FILTER}",
    ),
    "equinox probabilities": (
        lambda: eqx.nn.Dropout(0.5),
        "'p' must be an inexact array to be a parameter, got 0.5",
    ),
}
ANY = dm.layers_by_path([""])


def pattern(message):
    return ".*".join(map(re.escape, message.split(" … ")))


USES = {
    "describe": lambda tree: dm.describe(ANY, tree),
    "describe by the user's own layers": lambda tree: dm.describe(
        lambda params: jax.tree.map(lambda _: dm.Layer(0, dm.norms.RMS()), params), tree
    ),
    "layers": ANY,
    "init_on_ball": lambda tree: dm.init_on_ball(tree, key=KEY),
    "muon": lambda tree: dm.muon(0.1).init(tree),
    "scion": lambda tree: dm.scion(0.1).init(tree),
    "gluon": lambda tree: dm.gluon(0.1).init(tree),
    "drop_layers": TRANSFORMATIONS["adamw"].init,
    "ef21_muon": lambda tree: dm.ef21_muon(
        0.1, ANY, dm.compressors.TopK(0.5), num_workers=2, key=KEY
    ).init(tree),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("case", REFUSED | EQUINOX)
def test_what_is_no_parameter_is_refused_by_name(case, use):
    build, message = (REFUSED | EQUINOX)[case]
    with pytest.raises(ValueError, match=pattern(message)):
        USES[use](build())


@pytest.mark.parametrize("case", [c for c in REFUSED if c != "nnx module"])
@pytest.mark.parametrize("active", [None, (True,)])
def test_what_is_no_parameter_is_not_differentiated(case, active):
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=pattern(message)):
        dm.value_and_grad(lambda tree: 0.0, ANY)(build(), active=active)


class Counted(nnx.Module):
    def __init__(self):
        self.count = nnx.Param(jnp.zeros((), jnp.uint32))
        self.weight = nnx.Param(jnp.ones(3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: {"w": jnp.ones(2), "n": jnp.zeros(2, jnp.uint32)},
            "'n' .* got uint32",
        ),
        (lambda: {"w": jnp.ones(2), "key": KEY}, "'key' .* got key<fry>"),
        (lambda: {"w": jnp.ones(2), "train": True}, "'train' .* got bool"),
        (Counted, "'count' .* got uint32"),
    ],
)
@pytest.mark.parametrize("active", [None, (True,)])
def test_what_has_no_gradient_is_refused_by_name(build, message, active):
    with pytest.raises(ValueError, match=message):
        dm.value_and_grad(lambda tree: 0.0, ANY)(build(), active=active)


def test_what_is_taken_for_parameters():
    net, variables = Net(), linen_variables()
    fine = [
        nnx.state(net, nnx.Param),
        nnx.state(net, Calls),  # nothing but variables of one's own: meant
        nnx.to_pure_dict(nnx.state(net, nnx.Param)),
        variables["params"],
        {"params": variables["params"]},
        {"params": {"a": jnp.ones(2)}, "temperature": jnp.ones(())},
        {"mean": {"kernel": jnp.ones((2, 2))}, "var": {"kernel": jnp.ones((2, 2))}},
        {"mean": jnp.ones(2), "var": jnp.ones(2)},  # a Gaussian's
        {"a": None, "b": jnp.ones(2), "c": 1.0, "d": np.ones(2)},
        jax.eval_shape(lambda: variables["params"]),
        eqx.filter(eqx.nn.make_with_state(Equinox)()[0], eqx.is_inexact_array),
        eqx.filter_eval_shape(lambda: eqx.nn.Linear(2, 2, key=KEY)),
    ]
    for tree in fine:
        assert jax.tree.structure(ANY(tree)) == jax.tree.structure(tree)
        dm.describe(ANY, tree)


@pytest.mark.parametrize(
    "tx",
    [
        dm.muon(0.1),
        dm.scion(0.1),
        dm.gluon(0.1),
        dm.drop_muon(0.1, ANY, dm.samplings.Full(), key=KEY),
        dm.drop_layers(optax.adamw(0.1), ANY, dm.samplings.Full(), key=KEY),
        dm.ef21_muon(0.1, ANY, dm.compressors.TopK(0.5), num_workers=2, key=KEY),
    ],
)
def test_none_passes_through_every_transformation(tx):
    params = {"a": None, "b": {"kernel": jnp.ones((3, 4)), "bias": None}}
    state = tx.init(params)

    def step(params, state, batch):
        updates, state = tx.update(params, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        return optax.apply_updates(params, updates), state

    if hasattr(state, "G_j"):
        step = dm.worker_map(step, "data", state)
    moved, _ = jax.jit(step)(params, state, jnp.ones(2))
    assert moved["a"] is moved["b"]["bias"] is None
    assert (moved["b"]["kernel"] != 1).any()


def test_no_framework_is_imported():
    program = """
import sys, jax.numpy as jnp, dropmuon_optax as dm
params = {"w": jnp.ones((2, 2))}
layers = dm.layers_by_path([""])
dm.value_and_grad(lambda p: p["w"].sum(), layers)(params, active=(True,))
dm.muon(0.1, layers).init(params)
assert not {"flax", "equinox"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
