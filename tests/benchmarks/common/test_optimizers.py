"""What each compared optimizer does to the CNN: a fair comparison needs to know."""

import functools

import jax
import numpy as np
import pytest

import dropmuon_optax as dm
from benchmarks.common.optimizers import ADAM_SHARE, OPTIMIZERS
from benchmarks.models import cnn

RATE = 0.01


def random_like(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), params)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(lambda: cnn.build((8, 8, 1), "small", seed=0)[1])
    return random_like(shapes, seed=0)


@pytest.fixture(scope="module")
def first_updates(params):
    """By name, then by path: the first updates at the learning rate RATE."""

    @functools.cache
    def of(name):
        optimizer = OPTIMIZERS[name].build(lambda count: RATE)
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
            update = jax.jit(lambda g, x: optimizer.update(g, optimizer.init(x), x)[0])
            updates = update(random_like(params, seed=1), params)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
        }

    return of


def singular_values(kernel):
    return np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)


@pytest.mark.parametrize("name", ["muon", "optax_muon"])
def test_both_muons_orthogonalize_every_kernel_as_a_matrix(name, first_updates):
    updates = first_updates(name)
    for layer, sides in [
        ("conv1", (9, 16)),
        ("conv2", (144, 32)),
        ("conv3", (288, 64)),
    ]:
        length = RATE * max(1.0, sides[1] / sides[0]) ** 0.5
        values = singular_values(updates[f"{layer}/kernel"]) / length
        # Keller Jordan's five Newton-Schulz steps bring singular values near 1
        assert values.max() < 1.3, layer
        assert np.median(values) > 0.65, layer


# Adam's first step is the sign of the gradient. Optax's Muon gives Adam Nesterov's
# momentum too: (0.9·0.1/0.19 + 0.1/0.1) times that, with β₁ = 0.9.
@pytest.mark.parametrize(("name", "factor"), [("muon", 1.0), ("optax_muon", 1.473684)])
def test_both_muons_leave_head_and_biases_to_adam(name, factor, first_updates):
    updates = first_updates(name)
    for path in ("head/kernel", "head/bias", "conv2/bias"):
        length = factor * ADAM_SHARE * RATE
        np.testing.assert_allclose(abs(updates[path]), length, rtol=1e-3)


def test_gluon_steps_are_as_long_as_the_radii_say(first_updates):
    updates = first_updates("gluon")
    head = RATE * cnn.HEAD_RADIUS / 256  # sign / n_in
    np.testing.assert_allclose(abs(updates["head/kernel"]), head, rtol=1e-5)
    conv3 = RATE * cnn.CONV_RADIUS / 9 * (64 / 32) ** 0.5  # (1/k²)√(C_out/C_in)
    values = singular_values(updates["conv3/kernel"]) / conv3
    assert values.max() < 1.3
    assert np.median(values) > 0.65


def test_scion_shrinks_the_weights_besides(first_updates, params):
    scion, gluon = first_updates("scion"), first_updates("gluon")
    for path in ("conv2/kernel", "head/kernel"):
        layer, leaf = path.split("/")
        expected = gluon[path] - RATE * np.asarray(params[layer][leaf])
        np.testing.assert_allclose(scion[path], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layers", [cnn.scion_layers, cnn.muon_layers])
def test_layers_are_numbered_from_the_input(layers, params):
    tree = layers()(params)
    assert dm.count_layers(tree) == 4
    for index, name in enumerate(cnn.LAYER_ORDER):
        assert tree[name]["kernel"].index == tree[name]["bias"].index == index
