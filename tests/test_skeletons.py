"""The files to copy, docs/skeletons: each is a whole one, and obeys its laws."""

import doctest
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropmuon_optax as dm
from tests.documents import ROOT

FOLDER = ROOT / "docs" / "skeletons"
RNG = np.random.default_rng(0)


def load(name):
    """The skeleton as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_examples_hold_and_the_page_leads_there(path):
    failed, tried = doctest.testmod(load(path.stem))
    assert tried
    assert not failed
    assert f"](skeletons/{path.name})" in (ROOT / "docs/CONTRIBUTING.md").read_text()


def test_the_norm_is_one():
    norm = load("norm").SumEntry()
    for scale in (1e-30, 1.0, 1e30):
        g = RNG.normal(size=(4, 3))
        x = norm.lmo(jnp.asarray(scale * g, jnp.float32), 2.0)
        x = np.asarray(x, np.float64)
        assert np.abs(x).sum() == pytest.approx(2.0, rel=1e-6)
        assert np.sum(x * g) == pytest.approx(-2.0 * np.abs(g).max(), rel=1e-6)


def test_the_compressor_contracts():
    compressor = load("compressor").LargestRow()
    for shape in ((5, 3), (1, 4), (3, 5)):
        x = RNG.normal(size=shape)
        payload = compressor.compress(jnp.asarray(x, jnp.float32))
        lost = np.asarray(compressor.decompress(payload, shape), np.float64) - x
        bound = (1 - compressor.alpha(shape)) * np.sum(x**2)
        assert np.sum(lost**2) <= bound * (1 + 1e-6) + 1e-12
        assert compressor.num_bits(shape) == 32 * (shape[1] + 1)


def test_the_sampling_draws_its_marginals_on_host_and_device():
    sampling, key = load("sampling").NowAndThen(4), jax.random.key(0)
    for step in range(9):
        expected = (step % 4 == 0,) * 2 + (True,)
        assert dm.active_layers(sampling, 3, key, step) == expected
        drawn = sampling.sample(3, step, key=jax.random.fold_in(key, step))
        assert tuple(drawn.tolist()) == expected


def test_the_algorithm_is_its_box():
    layers = dm.layers_by_path(None, [("", dm.norms.Frobenius(), 0.5)])
    tx = load("algorithm").heavy_ball(0.1, layers, momentum=0.7)
    x = RNG.normal(size=(4, 3))
    params = {"w": jnp.asarray(x, jnp.float32)}
    m, state = np.zeros_like(x), tx.init(params)
    for _ in range(5):
        g = RNG.normal(size=x.shape)
        m = 0.7 * m + g
        x = x - 0.1 * 0.5 * m / np.linalg.norm(m)
        updates, state = tx.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        np.testing.assert_allclose(params["w"], x, atol=1e-6)
