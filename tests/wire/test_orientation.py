"""A compressor sees a leaf as it is: what `describe` says is what is sent."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropmuon_optax as dm
from dropmuon_optax import norms
from dropmuon_optax.compressors import ColumnTopK, Composed, Identity, RankK, TopK
from tests.compressors.test_compressor_laws import COMPRESSORS

N = 4
SHAPES = [(45, 16), (33, 17), (24, 40)]
LAYERS = dm.layers_by_path(None, [("", norms.Spectral(num_steps=1), 1.0)])


def make(compressor, n, **options):
    key = jax.random.key(0)
    return dm.ef21_muon(0.1, LAYERS, compressor, num_workers=n, key=key, **options)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_what_is_described_is_what_is_sent(compressor):
    """Every worker's payloads of all leaves go to each of the others."""
    params = {f"w{i}": jnp.ones(shape) for i, shape in enumerate(SHAPES)}
    tx = make(compressor, N, topology="gather")
    state = tx.init(params)
    mesh = jax.sharding.AbstractMesh((N,), ("data",))
    step = dm.worker_map(
        lambda p, s, g: tx.update(jax.tree.map(lambda x: x[0], g), s, p),
        "data", state, mesh,
    )  # fmt: skip
    g = jax.tree.map(lambda w: jnp.stack([w] * N), params)
    sent = dm.count_traced_bytes(step, params, state, g).total
    text = dm.describe(LAYERS, params, compressor)
    shares = [float(row) for row in re.findall(r"([\d.]+)%", text)]
    bits = [compressor.num_bits(shape) for shape in SHAPES]
    for share, bit, shape in zip(shares, bits, SHAPES, strict=True):
        assert share == pytest.approx(100 * bit / (32 * np.prod(shape)), abs=0.05)
    assert sent == (N - 1) * sum(bits) // 8


@pytest.mark.parametrize("norm", [norms.Spectral(num_steps=1), norms.MaxEntry()])
@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (64, 4)])
def test_columns_are_the_leafs_own(shape, norm, monkeypatch):
    """Of a kernel, half of its columns arrive, whole; cut into blocks or not."""
    monkeypatch.setattr("dropmuon_optax.wire.ownership.MIN_BLOCK", 4)
    layers = dm.layers_by_path(None, [("", norm, 1.0)])
    compressor = Composed(Identity(), ColumnTopK(0.5))
    for chosen in (ColumnTopK(0.5), compressor):
        tx = dm.ef21_muon(
            0.1, layers, chosen, momentum=0.0, num_workers=2, key=jax.random.key(0)
        )
        rng = np.random.default_rng(0)
        g = {"w": jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)}
        params = {"w": jnp.zeros(shape)}
        state = tx.init(params)
        step = dm.worker_map(
            lambda p, s, g, tx=tx: tx.update({"w": g["w"][0]}, s, p),
            "data",
            state,
        )
        _, state = jax.jit(step)(params, state, g)
        for estimate in np.asarray(state.G_j["w"]):
            kept = (estimate != 0).any(axis=0)
            assert kept.sum() == shape[1] // 2
            assert (estimate[:, kept] != 0).all()


def test_who_treats_rows_and_columns_alike():
    assert TopK(0.1).symmetric
    assert RankK(0.1).symmetric
    assert not ColumnTopK(0.1).symmetric
    assert not Composed(Identity(), ColumnTopK(0.5)).symmetric


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_the_transpose_of_what_is_symmetric_takes_as_many_bits(compressor):
    if compressor.symmetric:
        for shape in SHAPES:
            turned = shape[::-1]
            assert compressor.num_bits(turned) == compressor.num_bits(shape)
            assert compressor.alpha(turned) == compressor.alpha(shape)
