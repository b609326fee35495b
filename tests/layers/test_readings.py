"""What a leaf is, by its name and shape: roles, views, guesses and refusals."""

import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax.layers import read

LEAVES = [  # (path, shape, (matrices, fan_in, fan_out))
    ("dense/kernel", (8, 4), (1, 8, 4)),
    ("conv/kernel", (5, 8, 4), (1, 40, 4)),
    ("conv/kernel", (3, 3, 8, 4), (1, 72, 4)),
    ("conv/kernel", (3, 3, 3, 2, 4), (1, 54, 4)),
    ("dense/bias", (4,), (1, 1, 4)),
    ("temperature", (), (1, 1, 1)),
    ("attn/query/kernel", (16, 4, 6), (1, 16, 24)),
    ("attn/value/kernel", (16, 4, 6), (1, 16, 24)),
    ("attn/out/kernel", (4, 6, 16), (1, 24, 16)),
    ("blocks/norm/scale", (12, 16), (12, 1, 16)),
    ("blocks/dense/bias", (12, 16), (12, 1, 16)),
    ("attn/query/bias", (4, 6), (4, 1, 6)),
]


@pytest.mark.parametrize(("path", "shape", "expected"), LEAVES, ids=str)
def test_default_views(path, shape, expected):
    assert read(path, shape).view.matrix_shape(shape) == expected


def test_equinox_weights_have_fan_out_first():
    view = read("mlp/layers/0/weight", (4, 8), attribute=True).view
    x = np.arange(32).reshape(4, 8)
    np.testing.assert_array_equal(view.to_matrices(jnp.asarray(x))[0], x.T)
    conv = read("conv/weight", (4, 8, 3, 3), attribute=True).view
    assert conv.matrix_shape((4, 8, 3, 3)) == (1, 72, 4)
    bias = read("conv/bias", (4, 1, 1), attribute=True).view
    assert bias.matrix_shape((4, 1, 1)) == (1, 1, 4)
    assert read("mlp/bias", (12, 4)).view.matrix_shape((12, 4)) == (12, 1, 4)
    # A dictionary's key may be called `weight` without that.
    plain = read("layer/weight", (4, 8)).view
    assert plain.matrix_shape((4, 8)) == (1, 4, 8)


@pytest.mark.parametrize(
    ("path", "shape", "kind"),
    [
        ("transformer/multi_head_attention/query/kernel", (8, 2, 4), "hidden"),
        ("multihead_attn/out_proj/kernel", (8, 8), "hidden"),
        ("wte/embedding", (50, 8), "embedding"),
        ("token_embedder/embedding", (50, 8), "embedding"),
        ("pos_embedding", (50, 8), "embedding"),
        ("lm_head/kernel", (8, 50), "head"),
        ("head/kernel", (8, 50), "head"),
        ("params/output/kernel", (8, 50), "head"),
        ("bert/layer_0/output/kernel", (8, 8), "hidden"),
        ("classifier/kernel", (8, 50), "head"),
        ("header_block/kernel", (8, 8), "hidden"),
        ("head/bias", (50,), "vector"),
        ("blocks/ln/scale", (12, 8), "vector"),
        ("stem/kernel", (3, 3, 3, 8), "conv"),
        ("dw/kernel", (3, 3, 1, 8), "depthwise"),
    ],
)
def test_roles_by_name_and_shape(path, shape, kind):
    assert read(path, shape).role == kind
