"""Matrix views: which axes are rows, which columns, which a batch of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropmuon_optax as dm
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


def test_pieces_along_fan_out():
    x = np.arange(5 * 14).reshape(5, 14)
    view = View((0,), (1,), split=(8, 4, 2))
    assert view.matrix_shapes(x.shape) == [(1, 5, 8), (1, 5, 4), (1, 5, 2)]
    pieces = view.to_pieces(jnp.asarray(x))
    for piece, expected in zip(pieces, (x[:, :8], x[:, 8:12], x[:, 12:]), strict=True):
        np.testing.assert_array_equal(piece[0], expected)
    np.testing.assert_array_equal(view.from_pieces(pieces, x.shape), x)


def test_one_piece_is_no_split_and_equal_pieces_are_heads():
    x = jnp.arange(5.0 * 12).reshape(5, 12)
    whole = View((0,), (1,), split=(12,))
    assert whole.is_plain(2)
    np.testing.assert_array_equal(whole.to_pieces(x)[0], x[None])
    heads = views.PER_HEAD_IN.to_matrices(x.reshape(5, 3, 4))
    pieces = View((0,), (1,), split=(4, 4, 4)).to_pieces(x)
    np.testing.assert_array_equal(jnp.concatenate(pieces), heads)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "view",
    [views.DENSE, views.PER_HEAD_IN, View((1, 2), (0,), split=(1, 2)), views.VECTOR],
    ids=str,
)
def test_the_view_over_a_stack_is_that_of_its_slices_in_order(view, axis):
    sizes = [3, 2, 5]
    shape = (*sizes[:axis], 4, *sizes[axis:])
    x = np.arange(120).reshape(shape)
    over = view.over(axis, 4)
    pieces = over.to_pieces(jnp.asarray(x))
    for j in range(4):
        slices = view.to_pieces(jnp.asarray(np.take(x, j, axis)))
        for piece, of_slice in zip(pieces, slices, strict=True):
            k = len(of_slice)
            np.testing.assert_array_equal(piece[j * k : (j + 1) * k], of_slice)
    np.testing.assert_array_equal(over.from_pieces(pieces, shape), x)


@pytest.mark.parametrize(
    ("view", "shape", "plain"),
    [
        (views.DENSE, (3, 4), True),
        (views.DENSE, (2, 3, 4), True),
        (views.DENSE.over(0, 3), (2, 3, 4), True),
        (views.DENSE.over(1, 3), (3, 2, 4), False),
        (views.DENSE, (2, 2, 3, 4), False),
        (View((1,), (0,)), (3, 4), False),
        (View((0, 1), (2,)), (2, 3, 4), False),
        (views.VECTOR, (3, 4), False),
    ],
    ids=str,
)
def test_plain_stacks_of_matrices_are_taken_as_they_lie(view, shape, plain):
    assert view.is_plain(len(shape)) == plain
    program = jax.make_jaxpr(view.to_matrices)(jnp.ones(shape))
    moved = {"transpose", "reshape"} & {e.primitive.name for e in program.eqns}
    assert not (plain and moved)


@pytest.mark.parametrize("split", [(), (8, 0), (8, -1), (2.5,)])
@pytest.mark.usefixtures("without_type_checks")
def test_sizes_that_are_none_are_refused(split):
    with pytest.raises(ValueError, match="`split` must"):
        View((0,), (1,), split=split)


def test_sizes_that_do_not_add_up_are_refused_by_name():
    layers = dm.layers_by_path(
        None, [("", dm.norms.Spectral(), 1.0, View((0,), (1,), split=(8, 4)))]
    )
    with pytest.raises(
        ValueError,
        match=r"'attn/qkv' of shape \(8, 14\): `split` must add up to fan_out, the 14 "
        r"columns of axes \(1,\), got \(8, 4\), which are 12",
    ):
        dm.scale_by_lmo(layers).init({"attn": {"qkv": jnp.ones((8, 14))}})


@pytest.mark.parametrize(
    ("view", "ndim"),
    [
        (View((0,), (2,)), 2),
        (View((0,), (0,)), 2),
        (View((-3,), ()), 2),
        (View((0,), (1,), batch=()), 3),
        (View((0,), (1,), batch=(1,)), 3),
    ],
)
def test_views_that_do_not_fit_are_refused(view, ndim):
    with pytest.raises(ValueError, match="`view` must name"):
        view.matrix_shape((3,) * ndim)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("axes", [0, (0.0,), ("a",)], ids=repr)
def test_axes_are_whole_numbers(axes):
    with pytest.raises(ValueError, match="`fan_in` must be a tuple of whole numbers"):
        View(axes, (1,))
