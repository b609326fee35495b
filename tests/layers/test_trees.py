"""Every leaf of public models' trees is read as an expert would label it."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import dropmuon_optax as dm
from dropmuon_optax.layers.leaves import join
from tests.layers import trees
from tests.layers.trees import language, recurrent, vision

TABLES = {
    name: table
    for module in (vision, language, recurrent)
    for name, table in vars(module).items()
    if name.isupper()
}
GEOMETRIES = {
    dm.muon_geometry: {
        "hidden": lambda *_: (dm.norms.muon_spectral(), 1.0),
        "conv": lambda *_: (dm.norms.muon_spectral(), 1.0),
        "depthwise": lambda *_: (None, 1.0),
        "vector": lambda *_: (None, 1.0),
        "embedding": lambda *_: (None, 1.0),
        "head": lambda *_: (None, 1.0),
    },
    dm.scion_geometry: {
        "hidden": lambda *_: (dm.norms.scion_spectral(), 1.0),
        "conv": lambda *spatial: (dm.norms.scion_conv(*spatial), 1.0),
        "depthwise": lambda *_: (dm.norms.scion_column(), 1.0),
        "vector": lambda *_: (dm.norms.RMS(), 0.25),
        "embedding": lambda *_: (dm.norms.scion_row(), 1.0),
        "head": lambda *_: (dm.norms.scion_sign(), 16.0),
    },
}


def check(params, table, geometry):
    expected = trees.read_table(table)
    leaves = {
        leaf.path: leaf for leaf in join(dm.layers_by_path(None, geometry), params)
    }
    assert leaves.keys() == expected.keys()
    for path, want in expected.items():
        leaf = leaves[path]
        assert leaf.value.shape == want.shape, path
        norm = GEOMETRIES[geometry][want.role](*want.spatial)
        assert (leaf.layer.norm, leaf.layer.radius) == norm, path
        assert leaf.view.matrix_shape(want.shape) == want.matrices, path
        assert (leaf.reading.evidence == "guess") == want.guessed, path


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.__name__)
@pytest.mark.parametrize("name", TABLES)
def test_every_leaf_is_what_an_expert_says(name, geometry):
    attributes = name.endswith("_EQUINOX")
    build = trees.as_attributes if attributes else trees.as_dict
    check(build(TABLES[name]), TABLES[name], geometry)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.GRUCell(64, name="gru"))(x)
        x = nn.RNN(nn.LSTMCell(64, name="lstm"))(x)
        return nn.Dense(10, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(100, 8, rngs=rngs)
        self.gru = nnx.GRUCell(8, 64, rngs=rngs)
        self.lstm = nnx.OptimizedLSTMCell(64, 64, rngs=rngs)


class Equinox(eqx.Module):
    embed: eqx.nn.Embedding
    gru: eqx.nn.GRUCell
    lstm: eqx.nn.LSTMCell


def linen():
    return Linen().init(jax.random.key(0), jnp.ones((1, 3, 8)))


def equinox():
    key = jax.random.key(0)
    module = Equinox(
        eqx.nn.Embedding(100, 8, key=key),
        eqx.nn.GRUCell(8, 64, key=key),
        eqx.nn.LSTMCell(64, 64, key=key),
    )
    return eqx.filter(module, eqx.is_inexact_array)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.__name__)
@pytest.mark.parametrize(
    ("make", "table"),
    [
        (linen, recurrent.RNN_LINEN),
        (lambda: nnx.state(Nnx(nnx.Rngs(0)), nnx.Param), recurrent.RNN_NNX),
        (equinox, recurrent.RNN_EQUINOX),
    ],
    ids=["linen", "nnx", "equinox"],
)
def test_the_libraries_lay_cells_out_so(make, table, geometry):
    check(make(), table, geometry)


LINEN_LAYERS = """
params/conv/kernel              3,3,4,8   conv(3,3)  1x36x8
params/up/kernel                2,2,8,8   conv(2,2)  1x32x8
params/conv1d/kernel            3,4,8     conv(3)    1x12x8
params/attn/{query,key,value}/kernel  8,2,4  hidden  1x8x8
params/attn/out/kernel          2,4,8     hidden     1x8x8
params/qkv/kernel               8,3,2,4   hidden     3x8x8
params/q_einsum/kernel          2,8,4     hidden     1x8x8
params/stats/embedding          9,8       embedding  1x9x8
"""


class LinenLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        nn.Conv(8, (3, 3), use_bias=False, name="conv")(x)
        nn.Conv(8, (3,), use_bias=False, name="conv1d")(x[0])
        x = nn.ConvTranspose(8, (2, 2), use_bias=False, name="up")(jnp.tile(x, 2))
        nn.MultiHeadDotProductAttention(2, use_bias=False, name="attn")(x[0])
        nn.DenseGeneral((3, 2, 4), use_bias=False, name="qkv")(x)
        nn.Embed(9, 8, name="stats")(jnp.zeros(1, jnp.int32))
        return nn.Einsum((2, 8, 4), "...d,ndh->...nh", use_bias=False, name="q_einsum")(
            x
        )


NNX_LAYERS = """
conv/kernel                     3,3,4,8   conv(3,3)  1x36x8
attn/{query,key,value}/kernel   8,2,4     hidden     1x8x8
attn/out/kernel                 2,4,8     hidden     1x8x8
lora/lora_a                     4,2       hidden     1x4x2
lora/lora_b                     2,5       hidden     1x2x5
q_einsum/kernel                 2,8,4     hidden     1x8x8
norm/{scale,bias}               8         vector     1x1x8
"""


class NnxLayers(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 8, (3, 3), use_bias=False, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(
            2, 8, use_bias=False, decode=False, rngs=rngs
        )
        self.lora = nnx.LoRA(4, 2, 5, rngs=rngs)
        self.q_einsum = nnx.Einsum("...d,ndh->...nh", (2, 8, 4), rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)


EQUINOX_LAYERS = """
conv/weight                     8,4,3,5   conv(3,5)  1x60x8
conv/bias                       8,1,1     vector     1x1x8
conv1d/weight                   8,4,3     conv(3)    1x12x8
conv_up/weight                  8,4,2,2   conv(2,2)  1x16x8
dwconv/weight                   8,1,3,3   depthwise  1x9x8
attn/{query_proj,key_proj,value_proj,output_proj}/weight  8,8  hidden  1x8x8
layer_norm/{weight,bias}        2,3,4     vector     1x1x24
pos_embed/weight                9,8       embedding  1x9x8
linear/weight                   8,4       hidden     1x4x8
"""


class EquinoxLayers(eqx.Module):
    conv: eqx.nn.Conv2d
    conv1d: eqx.nn.Conv1d
    conv_up: eqx.nn.ConvTranspose2d
    dwconv: eqx.nn.Conv2d
    attn: eqx.nn.MultiheadAttention
    layer_norm: eqx.nn.LayerNorm
    pos_embed: eqx.nn.Embedding
    linear: eqx.nn.Linear

    def __init__(self, key):
        nn, k = eqx.nn, {"use_bias": False, "key": key}
        self.conv = nn.Conv2d(4, 8, (3, 5), key=key)
        self.conv1d = nn.Conv1d(4, 8, 3, **k)
        self.conv_up = nn.ConvTranspose2d(4, 8, 2, **k)
        self.dwconv = nn.Conv2d(8, 8, 3, groups=8, **k)
        self.attn = nn.MultiheadAttention(2, 8, key=key)
        self.layer_norm = nn.LayerNorm((2, 3, 4))
        self.pos_embed = nn.Embedding(9, 8, key=key)
        self.linear = nn.Linear(4, 8, **k)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.__name__)
@pytest.mark.parametrize(
    ("make", "table"),
    [
        (
            lambda: jax.eval_shape(
                LinenLayers().init, jax.random.key(0), jnp.ones((1, 8, 8, 4))
            ),
            LINEN_LAYERS,
        ),
        (lambda: nnx.state(NnxLayers(nnx.Rngs(0)), nnx.Param), NNX_LAYERS),
        (
            lambda: eqx.filter(EquinoxLayers(jax.random.key(0)), eqx.is_inexact_array),
            EQUINOX_LAYERS,
        ),
    ],
    ids=["linen", "nnx", "equinox"],
)
def test_the_libraries_lay_layers_out_so(make, table, geometry):
    check(make(), table, geometry)
