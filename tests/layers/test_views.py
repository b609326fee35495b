"""Matrix views: which axes are rows, which columns, which a batch of matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax.layers import views
from dropmuon_optax.layers.views import View

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
    assert views.default_view(path, shape).matrix_shape(shape) == expected


@pytest.mark.parametrize(
    ("view", "shape", "expected"),
    [
        (views.DENSE, (12, 8, 4), (12, 8, 4)),
        (views.PER_HEAD_IN, (16, 4, 6), (4, 16, 6)),
        (views.PER_HEAD_OUT, (4, 6, 16), (4, 6, 16)),
        (views.HEADS_MERGED, (16, 4, 6), (1, 16, 24)),
        (View((1, 2, 3), (0,)), (8, 4, 3, 3), (1, 36, 8)),
        (View((), (0, 1)), (2, 3), (1, 1, 6)),
        (View((-2,), (-1,)), (2, 3, 5, 7), (6, 5, 7)),
    ],
    ids=str,
)
def test_there_and_back(view, shape, expected):
    x = jnp.arange(np.prod(shape)).reshape(shape)
    matrices = view.to_matrices(x)
    assert matrices.shape == expected
    np.testing.assert_array_equal(view.from_matrices(matrices, shape), x)


def test_heads_are_cut_out_where_they_lie():
    x = np.arange(16 * 4 * 6).reshape(16, 4, 6)
    per_head = views.PER_HEAD_IN.to_matrices(jnp.asarray(x))
    np.testing.assert_array_equal(per_head[2], x[:, 2, :])
    merged = views.HEADS_MERGED.to_matrices(jnp.asarray(x))
    np.testing.assert_array_equal(merged[0], x.reshape(16, 24))


def test_equinox_weights_have_fan_out_first():
    view = views.default_view("mlp/layers/0/weight", (4, 8), attribute=True)
    x = np.arange(32).reshape(4, 8)
    np.testing.assert_array_equal(view.to_matrices(jnp.asarray(x))[0], x.T)
    conv = views.default_view("conv/weight", (4, 8, 3, 3), attribute=True)
    assert conv.matrix_shape((4, 8, 3, 3)) == (1, 72, 4)
    bias = views.default_view("conv/bias", (4, 1, 1), attribute=True)
    assert bias.matrix_shape((4, 1, 1)) == (1, 1, 4)
    assert views.default_view("mlp/bias", (12, 4)).matrix_shape((12, 4)) == (12, 1, 4)
    # A dictionary's key may be called `weight` without that.
    plain = views.default_view("layer/weight", (4, 8))
    assert plain.matrix_shape((4, 8)) == (1, 4, 8)


@pytest.mark.parametrize(
    ("view", "ndim"),
    [(View((0,), (2,)), 2), (View((0,), (0,)), 2), (View((-3,), ()), 2)],
)
def test_views_that_do_not_fit_are_refused(view, ndim):
    with pytest.raises(ValueError, match="`view` must name"):
        view.matrix_shape((3,) * ndim)
