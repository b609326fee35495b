"""Residual blocks of the ResNet that are absent at first and enter without a jump."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dropmuon_optax as dm
from benchmarks.common import train
from benchmarks.models import resnet
from benchmarks.models.resnet import LAYER_ORDER

FEW = tuple(name not in ("block_1", "block_3", "block_7") for name in LAYER_ORDER)
ALL = (True,) * len(LAYER_ORDER)
SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def network():
    apply, params = resnet.build(SHAPE, "tiny", seed=0)
    return apply, nnx.to_pure_dict(params)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, *SHAPE)).astype(np.float32)
    return images, rng.integers(10, size=8).astype(np.int32)


def loss_of(network, present):
    return functools.partial(
        train.cross_entropy, functools.partial(network[0], present=present)
    )


@pytest.mark.usefixtures("standard_promotion")
def test_blocks_enter_without_a_jump_and_then_move(network, batch):
    sampling = dm.samplings.Grown(((0, FEW), (2, ALL)))
    key, layers = jax.random.key(0), resnet.layers()
    tx = dm.drop_muon(0.01, layers, sampling, key=key)
    params = resnet.without_branches(network[1], FEW)
    first, state, before = params, tx.init(params), None
    for step in range(4):
        present = dm.present_layers(sampling, len(LAYER_ORDER), key, step)
        if step == 2:
            before = params
            few, everything = (
                loss_of(network, x)(params, *batch) for x in (FEW, present)
            )
            # Two programs; the entering branches are zero.
            np.testing.assert_allclose(everything, few, rtol=1e-6)
            unlike = loss_of(network, present)(
                {**params, "block_1": network[1]["block_1"]}, *batch
            )
            assert abs(float(unlike) - float(few)) > 1e-3
        gradient = dm.value_and_grad(loss_of(network, present), layers)
        _, grads = gradient(params, *batch, active=present)
        updates, state = tx.update(grads, state, params, active=present)
        params = optax.apply_updates(params, updates)
    for name, here in zip(LAYER_ORDER, FEW, strict=True):
        kernels = [jax.tree.leaves(tree[name])[0] for tree in (first, before, params)]
        assert np.array_equal(kernels[0], kernels[1]) != here, name
        assert not np.array_equal(kernels[1], kernels[2]), name


def test_absent_blocks_cost_no_flops(network, batch):
    model = resnet.ResNet(3, resnet.PRESETS["tiny"], rngs=nnx.Rngs(0))
    for name, here in zip(LAYER_ORDER, FEW, strict=True):
        if not here:
            delattr(model, name)
    graphdef, few = nnx.split(model, nnx.Param)

    def cut(few, x):
        model = nnx.merge(graphdef, few)
        x = nnx.relu(model.stem(x))
        for i in (0, 2, 4, 5, 6):
            x = getattr(model, f"block_{i}")(x)
        return model.head(x.mean(axis=(1, 2)))

    gradient = jax.value_and_grad(functools.partial(train.cross_entropy, cut))
    by_hand = dm.count_flops(gradient, nnx.to_pure_dict(nnx.as_pure(few)), *batch)
    ours = dm.value_and_grad(loss_of(network, FEW), resnet.layers())
    found = dm.count_flops(functools.partial(ours, active=FEW), network[1], *batch)
    assert found == pytest.approx(by_hand, rel=0.02)


def test_blocks_with_a_convolution_in_the_shortcut_are_never_absent(network, batch):
    present = tuple(name != "block_2" for name in LAYER_ORDER)
    with pytest.raises(ValueError, match="got 'block_2' absent"):
        network[0](network[1], jnp.asarray(batch[0]), present=present)
