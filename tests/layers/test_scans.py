"""Leaves that a scan has stacked, along the leading axis or another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import dropmuon_optax as dm
from dropmuon_optax.layers import leaves

SHAPES = {  # MaxText's layout: three layers along axis 1
    "embed": (9, 8),
    "block": {"kernel": (8, 3, 8), "scale": (8, 3)},
    "head": (8, 4),
}
GEOMETRY = [("", dm.norms.Frobenius(), 1.0)]
ORDER = ["embed", "block", "head"]
MAXTEXT = dm.layers_by_path(ORDER, GEOMETRY, stacked="block", stacked_axis=1)
LEADING = dm.layers_by_path(ORDER, GEOMETRY, stacked="block")
KEY = jax.random.key(0)


def normal(seed):
    rng = np.random.default_rng(seed)
    make = lambda shape: jnp.asarray(rng.standard_normal(shape), "float32")  # noqa: E731
    return jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def leading(tree):
    """The same layers with their axis in front."""
    front = lambda x: x if x.shape[1] != 3 else jnp.moveaxis(x, 1, 0)  # noqa: E731
    return jax.tree.map(front, tree)


def assert_close(found, expected, atol=1e-5):
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=atol)
    jax.tree.map(close, found, expected)


def test_a_layer_is_a_slice_along_the_axis():
    tree = MAXTEXT(normal(0))
    expected = dm.Stacked(1, dm.norms.Frobenius(), length=3, axis=1)
    assert tree["block"] == {"kernel": expected, "scale": expected}
    assert tree["head"].index == 4
    assert dm.count_layers(tree) == 5
    without_length = {"a": dm.Stacked(0, None, axis=1)}
    assert dm.count_layers(without_length, {"a": jnp.ones((16, 3, 64))}) == 3
    text = dm.describe(MAXTEXT, normal(0))
    kernel = next(line for line in text.splitlines() if "kernel" in line)
    assert "1…3" in kernel
    assert kernel.endswith("3 × (8, 8)")


def test_a_geometry_function_sees_one_layer():
    seen = {}

    def geometry(path, shape):
        seen[path] = shape
        return dm.norms.RMS(), 1.0

    dm.layers_by_path(None, geometry, stacked="block", stacked_axis=1)(normal(0))
    assert seen["block/kernel"] == (8, 8)
    assert seen["block/scale"] == (8,)


@pytest.mark.parametrize("order", [ORDER, None], ids=["ordered", "unordered"])
def test_lengths_that_differ_name_the_axis_along_which_they_agree(order):
    tree = normal(0)
    tree["block"]["out"] = jnp.ones((2, 3, 8))
    layers = dm.layers_by_path(order, GEOMETRY, stacked="block")
    with pytest.raises(
        ValueError,
        match=r"in 'block' .* got \[2, 8\]; along axis 1 all have 3: write "
        "`stacked_axis=1`",
    ):
        layers(tree)
    tree["block"]["gate"] = jnp.ones((4, 5))
    with pytest.raises(ValueError, match=r"one length, got \[2, 4, 8\]$"):
        layers(tree)


def test_scans_of_different_lengths_need_not_agree_without_an_order():
    tree = {"encoder": {"blocks": jnp.ones((6, 8, 8))}, "decoder": {}}
    tree["decoder"]["blocks"] = jnp.ones((4, 8, 8))
    found = dm.layers_by_path(None, GEOMETRY, stacked="blocks")(tree)
    assert found["encoder"]["blocks"].length == 6
    assert found["decoder"]["blocks"].length == 4


def test_leaves_without_the_axis_are_refused():
    with pytest.raises(
        ValueError, match=r"with an axis 1, got 'block' of shape \(3,\)"
    ):
        dm.layers_by_path(None, GEOMETRY, stacked="block", stacked_axis=1)(
            {"block": jnp.ones(3)}
        )
    layers = lambda tree: {"a": dm.Stacked(0, dm.norms.RMS(), axis=2)}  # noqa: E731
    with pytest.raises(ValueError, match=r"'a' must have an axis 2 to be .* \(3, 4\)"):
        dm.scale_by_lmo(layers).init({"a": jnp.ones((3, 4))})


@pytest.mark.usefixtures("without_type_checks")
def test_no_axis_is_refused():
    with pytest.raises(ValueError, match=r"`axis` must be a whole number, got 1\.0"):
        dm.layers_by_path(None, GEOMETRY, stacked="block", stacked_axis=1.0)


INNERS = {
    "gluon": lambda layers: dm.gluon(0.1, layers),
    "adamw": lambda layers: optax.adamw(0.1),
    "adafactor": lambda layers: optax.adafactor(0.1, min_dim_size_to_factor=4),
}


@pytest.mark.parametrize("static", [True, False], ids=["static", "sampled"])
@pytest.mark.parametrize("name", INNERS)
def test_dropping_goes_like_that_of_a_leading_axis(name, static):
    sampling, ends = dm.samplings.Nice(2), []
    for layers, change in ((MAXTEXT, lambda x: x), (LEADING, leading)):
        tx = dm.drop_layers(INNERS[name](layers), layers, sampling, key=KEY)
        params = change(normal(0))
        state = tx.init(params)
        step = jax.jit(tx.update, static_argnames="active")
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            for k in range(3):
                active = dm.active_layers(sampling, 5, KEY, k) if static else None
                g = change(normal(1 + k))
                updates, state = step(g, state, params, active=active)
                params = optax.apply_updates(params, updates)
        ends.append(params if change is leading else leading(params))
    assert_close(*ends)


def test_what_is_frozen_keeps_its_state_bit_for_bit():
    tx = dm.drop_muon(0.1, MAXTEXT, dm.samplings.Nice(2), key=KEY)
    params = normal(0)
    g = normal(1)
    g["block"] = jax.tree.map(
        lambda x: x.at[:, jnp.array([0, 2])].set(jnp.nan), g["block"]
    )
    active = (False, False, True, False, True)
    updates, state = tx.update(g, tx.init(params), params, active=active)
    for tree in (updates, optax.tree.get(state, "momentum")):
        for x in tree["block"].values():
            assert not np.asarray(x)[:, [0, 2]].any()
            assert np.asarray(x)[:, 1].all()


def test_the_state_is_mapped_leaf_by_leaf():
    tx = dm.drop_muon(0.1, MAXTEXT, dm.samplings.Full(), key=KEY)
    ones = optax.tree_map_params(tx, jnp.ones_like, tx.init(normal(0)))
    assert optax.tree.get(ones, "momentum")["block"]["kernel"].all()


def test_truncated_backpropagation_and_a_scan_along_the_axis():
    def loss(params, tokens, active=None, axis=1):
        h = params["embed"][tokens]
        block = lambda p, h: jnp.tanh(h @ p["kernel"]) * p["scale"][None]  # noqa: E731
        inside = None if active is None else active[1:-1]
        h = dm.scan_layers(block, params["block"], h, inside, axis=axis)
        return jnp.sum((h @ params["head"]) ** 2)

    params, tokens = normal(0), jnp.array([0, 3, 6])
    active = (False, False, True, True, True)
    cut = dm.value_and_grad(functools.partial(loss, active=active), MAXTEXT)
    plain = dm.value_and_grad(loss, MAXTEXT)
    front = functools.partial(loss, axis=0)
    value, expected = jax.value_and_grad(front)(leading(params), tokens)
    for gradient in (cut, plain):
        found, grads = gradient(params, tokens, active=active)
        assert_close(found, value, 1e-3)
        for name, x in leading(grads)["block"].items():
            assert not x[0].any()
            assert_close(x[1:], expected["block"][name][1:], 1e-3)
        assert not grads["embed"].any()
        assert_close(grads["head"], expected["head"], 1e-3)
    with pytest.raises(ValueError, match="must have axes 1 of one length"):
        dm.scan_layers(lambda p, h: h, [jnp.ones((3, 2)), jnp.ones(3)], 0.0, axis=1)


def test_what_linen_scans_along_axis_1():
    class Block(linen.Module):
        @linen.compact
        def __call__(self, h, _):
            return linen.Dense(8)(h), None

    scan = linen.scan(
        Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=3
    )
    params = scan().init(KEY, jnp.ones((2, 8)), None)["params"]
    layers = dm.layers_by_path(["Dense"], stacked="Dense", stacked_axis=1)
    found = {leaf.path: leaf.num_layers for leaf in leaves.join(layers, params)}
    assert found == {"Dense_0/bias": 3, "Dense_0/kernel": 3}
    h = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8)), "float32")
    dense = lambda p, h: h @ p["kernel"] + p["bias"][None]  # noqa: E731
    ours = dm.scan_layers(dense, params["Dense_0"], h, axis=1)
    assert_close(ours, scan().apply({"params": params}, h, None)[0])


def test_an_axis_goes_with_what_is_stacked():
    with pytest.raises(ValueError, match="`stacked_axis` must go with `stacked`"):
        dm.layers_by_path(None, stacked_axis=1)
