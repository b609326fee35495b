"""Truncated backpropagation: the same gradients, and no more work than by hand."""

import collections
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dropmuon_optax as dm
from dropmuon_optax.counters import count_flops, count_primitives

B = 5
LAYERS = dm.layers_by_path(order=[r"layer_(\d)"])
SETS = list(itertools.product([False, True], repeat=B))[1:]
SUFFIXES = [tuple(i >= s for i in range(B)) for s in range(B)]
OTHERS = [(True, False, False, False, True), (False, True, False, True, False)]

every_suffix = pytest.mark.parametrize("active", SUFFIXES, ids=lambda a: str(sum(a)))


def dense_params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        f"layer_{i}": {
            "kernel": jnp.asarray(rng.standard_normal((6, 6)) / 2, dtype),
            "bias": jnp.asarray(rng.standard_normal(6), dtype),
        }
        for i in range(B)
    }


def dense(layer, h):
    return jnp.tanh(h @ layer["kernel"] + layer["bias"][None])


def dense_loss(params, x, block=dense):
    for i in range(B):
        x = block(params[f"layer_{i}"], x)
    return jnp.sum(x**2)


def conv_params():
    rng = np.random.default_rng(0)
    channels = [1, 4, 4, 4, 4, 2]
    return {
        f"layer_{i}": {
            "kernel": jnp.asarray(rng.standard_normal((3, 3, m, n)), "float32")
        }
        for i, (m, n) in enumerate(itertools.pairwise(channels))
    }


def conv(layer, h):
    dimensions = ("NHWC", "HWIO", "NHWC")
    kernel = layer["kernel"]
    h = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", None, None, dimensions)
    return jnp.tanh(h)


MODELS = {
    "dense": (dense, dense_params, (3, 6), "dot_general"),
    "conv": (conv, conv_params, (2, 8, 8, 1), "conv_general_dilated"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def model(name):
    block, params, shape, _ = MODELS[name]
    loss = functools.partial(dense_loss, block=block)
    return (
        loss,
        params(),
        jnp.asarray(np.random.default_rng(1).random(shape), "float32"),
    )


def by_hand(loss, active):
    """The program cut by hand: what is frozen goes into the loss as a constant."""

    def value_and_grad(params, x):
        moving = {n: p for n, p in params.items() if active[int(n[-1])]}
        frozen = {n: p for n, p in params.items() if not active[int(n[-1])]}
        return jax.value_and_grad(lambda m: loss({**m, **frozen}, x))(moving)

    return value_and_grad


def zeroed(grads, active):
    return {
        name: grad if active[int(name[-1])] else jax.tree.map(jnp.zeros_like, grad)
        for name, grad in grads.items()
    }


def assert_close(found, expected, rtol=1e-5):
    close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol)
    jax.tree.map(close, found, expected)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("active", SETS, ids=lambda a: "".join("01"[x] for x in a))
def test_every_set_gives_the_gradient_with_zeros(active):
    params, x = dense_params(), jnp.ones((3, 6))
    value, grads = dm.value_and_grad(dense_loss, LAYERS)(params, x, active=active)
    expected = jax.value_and_grad(dense_loss)(params, x)
    assert value == expected[0]
    assert_close(grads, zeroed(expected[1], active))
    for name, grad in grads.items():
        for leaf, param in zip(
            jax.tree.leaves(grad), jax.tree.leaves(params[name]), strict=True
        ):
            assert (leaf.shape, leaf.dtype) == (param.shape, param.dtype)
            if not active[int(name[-1])]:
                assert not leaf.any()


def test_no_set_is_all_layers():
    params, x = dense_params(), jnp.ones((3, 6))
    found = dm.value_and_grad(dense_loss, LAYERS)(params, x)
    assert_equal(found, jax.value_and_grad(dense_loss)(params, x))


@every_model
@pytest.mark.parametrize("active", SUFFIXES + OTHERS, ids=str)
def test_the_program_is_that_cut_by_hand(name, active):
    loss, params, x = model(name)
    primitive = MODELS[name][3]
    truncated = functools.partial(dm.value_and_grad(loss, LAYERS), active=active)
    hand = by_hand(loss, active)
    counts = [count_primitives(f, params, x)[primitive] for f in (truncated, hand)]
    # B forward; one for each layer that moves; one for each above the lowest of them.
    lowest = active.index(True)
    assert counts == [B + sum(active) + B - 1 - lowest] * 2
    flops = [count_flops(f, params, x) for f in (truncated, hand)]
    assert flops[0] == pytest.approx(flops[1], rel=0.02)


@every_model
def test_flops_fall_with_the_cutoff(name):
    loss, params, x = model(name)
    flops = [
        count_flops(
            functools.partial(dm.value_and_grad(loss, LAYERS), active=a), params, x
        )
        for a in SUFFIXES
    ]
    assert all(more > less for more, less in itertools.pairwise(flops))


def test_nan_in_the_backward_pass_of_a_frozen_layer_does_nothing():
    @jax.custom_vjp
    def poison(x):
        return x

    poison.defvjp(lambda x: (x, None), lambda _, g: (jnp.full_like(g, jnp.nan),))

    def loss(params, x):
        kernel = poison(params["layer_0"]["kernel"])
        return dense_loss(
            {**params, "layer_0": {**params["layer_0"], "kernel": kernel}}, x
        )

    params, x = dense_params(), jnp.ones((3, 6))
    _, grads = dm.value_and_grad(loss, LAYERS)(params, x, active=SUFFIXES[1])
    assert_close(grads, zeroed(jax.grad(dense_loss)(params, x), SUFFIXES[1]))


@every_suffix
def test_auxiliary_values(active):
    def loss(params, x, *, scale):
        return scale * dense_loss(params, x), {"mean": x.mean()}

    params, x = dense_params(), jnp.ones((3, 6))
    (value, aux), grads = dm.value_and_grad(loss, LAYERS, has_aux=True)(
        params, x, active=active, scale=2.0
    )
    plain = dm.value_and_grad(dense_loss, LAYERS)(params, x, active=active)
    assert aux["mean"] == 1
    assert_close((value / 2, jax.tree.map(lambda g: g / 2, grads)), plain)


@every_suffix
def test_under_jit_one_program_serves_each_set(active):
    num_traces = 0

    @functools.partial(jax.jit, static_argnames="active")
    def step(params, x, active):
        nonlocal num_traces
        num_traces += 1
        return dm.value_and_grad(dense_loss, LAYERS)(params, x, active=active)

    params = dense_params()
    for seed in range(3):
        step(params, jnp.full((3, 6), float(seed)), active)
    assert num_traces == 1


@every_suffix
def test_checkpointed_layers(active):
    params, x = dense_params(), jnp.ones((3, 6))
    loss = functools.partial(dense_loss, block=jax.checkpoint(dense))
    truncated = functools.partial(dm.value_and_grad(loss, LAYERS), active=active)
    plain = dm.value_and_grad(dense_loss, LAYERS)(params, x, active=active)
    assert_close(truncated(params, x), plain)
    # Of frozen layers nothing is run again.
    again = B + 3 * sum(active) - 1
    assert count_primitives(truncated, params, x)["dot_general"] <= again


@every_suffix
def test_mixed_precision(active):
    def loss(params, x):
        params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        return dense_loss(params, x.astype(jnp.bfloat16)).astype(jnp.float32)

    params, x = dense_params(), jnp.ones((3, 6))
    _, grads = dm.value_and_grad(loss, LAYERS)(params, x, active=active)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert_close(grads, zeroed(jax.grad(loss)(params, x), active), rtol=0.02)


@every_suffix
def test_parameters_in_half_precision(active):
    params, x = dense_params(jnp.bfloat16), jnp.ones((3, 6), jnp.bfloat16)
    _, grads = dm.value_and_grad(dense_loss, LAYERS)(params, x, active=active)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("bfloat16")}


def test_gradient_accumulation_inside_a_scan():
    params, batches = dense_params(), jnp.arange(36.0).reshape(2, 3, 6) / 36
    truncated = dm.value_and_grad(dense_loss, LAYERS)

    def add(total, x):
        _, grads = truncated(params, x, active=SUFFIXES[2])
        return jax.tree.map(jnp.add, total, grads), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), batches)
    whole = jax.grad(lambda p: sum(dense_loss(p, x) for x in batches))(params)
    assert_close(total, zeroed(whole, SUFFIXES[2]))


class Normalized(nnx.Module):
    def __init__(self, rngs):
        self.layer_0 = nnx.Linear(6, 6, rngs=rngs)
        self.layer_1 = nnx.BatchNorm(6, rngs=rngs)
        self.layer_2 = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.layer_2(jnp.tanh(self.layer_1(self.layer_0(x))))


def test_a_module_of_nnx_with_batch_statistics():
    graphdef, params, rest = nnx.split(Normalized(nnx.Rngs(0)), nnx.Param, ...)
    x = jnp.asarray(np.random.default_rng(0).random((8, 6)), jnp.float32)

    def loss(params, rest):
        model = nnx.merge(graphdef, params, rest, copy=True)
        value = jnp.sum(model(x) ** 2)
        return value, nnx.state(model, nnx.BatchStat)

    active = (False, False, True)
    truncated = dm.value_and_grad(loss, LAYERS, has_aux=True)
    (value, stats), grads = truncated(params, rest, active=active)
    expected, expected_grads = jax.value_and_grad(loss, has_aux=True)(params, rest)
    assert value == expected[0]
    assert_close(stats, expected[1])
    assert stats["layer_1"]["mean"][...].any()
    assert_close(grads["layer_2"], expected_grads["layer_2"])
    for name in ("layer_0", "layer_1"):
        assert not any(g.any() for g in jax.tree.leaves(grads[name]))
    assert jax.tree.structure(grads) == jax.tree.structure(expected_grads)


def test_a_module_of_equinox():
    model = eqx.nn.MLP(3, 2, 4, depth=1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)

    def loss(params, x):
        return jnp.sum(eqx.combine(params, static)(x))

    layers = dm.layers_by_path(order=[r"layers/(\d+)"])
    _, grads = dm.value_and_grad(loss, layers)(
        params, jnp.ones(3), active=(False, True)
    )
    assert not grads.layers[0].weight.any()
    assert_close(grads.layers[1], jax.grad(loss)(params, jnp.ones(3)).layers[1])


def test_a_tied_leaf_moves_with_its_first_use():
    layers = dm.layers_by_path(order=["embed", "body"])
    params = {"embed": jnp.eye(3), "body": 2 * jnp.eye(3)}

    def loss(params):
        return jnp.sum(params["embed"] @ params["body"] @ params["embed"].T)

    _, grads = dm.value_and_grad(loss, layers)(params, active=(False, True))
    assert not grads["embed"].any()
    assert_close(grads["body"], jax.grad(loss)(params)["body"])


# Layers stacked for a scan.


def stack(seed=0, length=4):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), "float32")  # noqa: E731
    blocks = {"kernel": normal(length, 6, 6) / 2, "bias": normal(length, 6)}
    return {"embed": normal(7, 6), "blocks": blocks, "head": normal(6, 3)}


STACKED = dm.layers_by_path(order=["embed", "blocks", "head"], stacked="blocks")


def scan_loss(params, tokens, active=None):
    h = params["embed"][tokens]
    inside = None if active is None else active[1:-1]
    h = dm.scan_layers(dense, params["blocks"], h, inside)
    return jnp.sum((h @ params["head"]) ** 2)


def row_counts(function, *args):
    """How many products the loops of a program run, counted with their length."""
    total = collections.Counter()

    def visit(jaxpr, times):
        for eqn in jaxpr.eqns:
            inner = times * eqn.params.get("length", 1)
            total[eqn.primitive.name] += times
            for value in jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")
            ):
                if hasattr(value, "jaxpr"):
                    visit(value.jaxpr, inner)

    visit(jax.make_jaxpr(function)(*args).jaxpr, 1)
    return total["dot_general"]


SCANS = [tuple(i >= s for i in range(6)) for s in range(6)]


@pytest.mark.parametrize(
    "active", [*SCANS, (False, True, False, False, True, False)], ids=str
)
def test_scanned_layers_stop_at_the_cutoff(active):
    params, tokens = stack(), jnp.array([0, 3, 6])
    cut = dm.value_and_grad(functools.partial(scan_loss, active=active), STACKED)
    truncated = functools.partial(cut, active=active)
    value, grads = truncated(params, tokens)
    expected_value, expected = jax.value_and_grad(scan_loss)(params, tokens)
    assert_close(value, expected_value)
    rows = np.array(active[1:-1])
    for name in ("kernel", "bias"):
        leaf, full = grads["blocks"][name], expected["blocks"][name]
        assert_close(leaf[rows], full[rows])
        assert not leaf[~rows].any()
    for name, moves in (("embed", active[0]), ("head", active[-1])):
        assert_close(grads[name], float(moves) * expected[name])
    lowest = active.index(True)
    # Layers 1 to 5 multiply once forward, once for each that moves, and once to pass
    # the gradient on to what is below: layers above the lowest that moves, and this one
    # too where it is in a loop, whose body is the same for all.
    passing = sum(i > lowest for i in range(1, 6)) + (1 <= lowest <= 4)
    assert row_counts(truncated, params, tokens) == 5 + sum(active[1:]) + passing


def test_a_stack_run_as_one_scan_is_right_though_not_cut_short():
    active = (False, False, False, True, True, True)
    params, tokens = stack(), jnp.array([0, 3, 6])
    _, plain = dm.value_and_grad(scan_loss, STACKED)(params, tokens, active=active)
    cut = dm.value_and_grad(functools.partial(scan_loss, active=active), STACKED)
    assert_close(plain, cut(params, tokens, active=active)[1])


@pytest.mark.parametrize("active", [None, (True,) * 4, (False,) * 4, (False, True) * 2])
def test_scanned_layers_compute_what_a_loop_does(active):
    params, h = stack()["blocks"], jnp.ones((2, 6))
    expected = h
    for j in range(4):
        expected = dense(jax.tree.map(lambda x, j=j: x[j], params), expected)
    assert_close(dm.scan_layers(dense, params, h, active), expected)
    checkpointed = dm.scan_layers(jax.checkpoint(dense), params, h, active)
    assert_close(checkpointed, expected)


# Bad input.


@pytest.mark.parametrize(
    ("active", "message"),
    [
        ((True,) * (B - 1), "one bool for each of 5 layers"),
        ((False,) * B, "at least one layer that moves"),
        ((1,) * B, "must be a tuple of bools"),
        (jnp.ones(B, bool), "must be a tuple of bools"),
    ],
)
def test_other_active_sets_are_refused(active, message):
    with pytest.raises(ValueError, match=message):
        dm.value_and_grad(dense_loss, LAYERS)(
            dense_params(), jnp.ones((3, 6)), active=active
        )


def test_layers_without_an_order_are_refused():
    gradient = dm.value_and_grad(dense_loss, dm.layers_by_path(None))
    with pytest.raises(
        ValueError, match="'layer_0/bias' must have a layer with an index"
    ):
        gradient(dense_params(), jnp.ones((3, 6)), active=(True,) * B)


@pytest.mark.parametrize(
    ("params", "active", "message"),
    [
        ({"a": jnp.ones((3, 2)), "b": jnp.ones(2)}, None, "of one length"),
        ({"a": jnp.ones((3, 2)), "b": jnp.ones(())}, None, "of one length"),
        ({}, None, "of one length"),
        ({"a": jnp.ones((3, 2))}, (True, False), "one bool for each of 3 layers"),
    ],
)
def test_other_stacks_are_refused(params, active, message):
    with pytest.raises(ValueError, match=message):
        dm.scan_layers(lambda p, h: h, params, jnp.ones(2), active)
