"""Matrix views: which axes are rows, which columns, which a batch of matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax.layers import views
from dropmuon_optax.layers.views import View


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


@pytest.mark.parametrize(
    ("view", "ndim"),
    [(View((0,), (2,)), 2), (View((0,), (0,)), 2), (View((-3,), ()), 2)],
)
def test_views_that_do_not_fit_are_refused(view, ndim):
    with pytest.raises(ValueError, match="`view` must name"):
        view.matrix_shape((3,) * ndim)
