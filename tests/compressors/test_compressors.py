"""Each compressor against NumPy in float64, and what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax.compressors import (
    ColumnTopK,
    Composed,
    Damping,
    Dropout,
    Identity,
    Natural,
    RandK,
    RankK,
    ScaledSign,
    TopK,
    selection,
)
from dropmuon_optax.compressors.blocks import Blocks


def decoded(compressor, x, key=None):
    x = jnp.asarray(x, jnp.float32)
    return np.asarray(
        compressor.decompress(compressor.compress(x, key=key), x.shape), np.float64
    )


def gaussian(shape, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x.astype(np.float32).astype(np.float64)


def numpy_top_k(blocks, kept):
    """Top-K of every column, by NumPy's partition."""
    order = np.argpartition(-np.abs(blocks), kept - 1, axis=0)[:kept]
    found = np.zeros_like(blocks)
    np.put_along_axis(found, order, np.take_along_axis(blocks, order, 0), 0)
    return found


@pytest.mark.parametrize("shape", [(24, 40), (7, 301), (301, 7), (1, 64)], ids=str)
@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.4])
@pytest.mark.parametrize("block", [None, 256, 40])
def test_top_k_is_numpys(shape, fraction, block):
    x = gaussian(shape)
    blocks = Blocks.of(shape, block)
    split = np.zeros(blocks.length * blocks.count)
    split[: x.size] = x.ravel()
    split = split.reshape(blocks.length, blocks.count)
    kept = round(fraction * blocks.length)
    expected = numpy_top_k(split, kept).ravel()[: x.size].reshape(shape)
    compressor = TopK(fraction, block)
    np.testing.assert_array_equal(decoded(compressor, x), expected)
    assert compressor.alpha(shape) == kept / blocks.length


@pytest.mark.parametrize("rows", [1, 3, 8, 37, 256, 257, 2100])
def test_selection_keeps_exactly_k_and_the_first_of_equals(rows):
    rng = np.random.default_rng(3)
    x = rng.integers(-2, 3, (rows, 5)).astype(np.float32)  # many equal, many zeros
    x[:, 0] = 0.0
    for k in sorted({1, rows // 3 + 1, rows}):
        bitmap = selection.largest(jnp.asarray(x), k)
        found = np.asarray(selection.positions(bitmap, k))
        order = np.argsort(-np.abs(x), axis=0, kind="stable")[:k]
        np.testing.assert_array_equal(found, np.sort(order, axis=0))
        np.testing.assert_array_equal(bitmap, np.packbits(_mask(order, rows), axis=0))


def test_long_columns_of_equals_with_odd_bits_go_by_position():
    odd = np.nextafter(np.float32(1), np.float32(2))
    x = jnp.full((2**16 + 8, 1), odd)
    kept = np.unpackbits(selection.largest(x, 3), axis=0)[:, 0]
    np.testing.assert_array_equal(np.flatnonzero(kept), [0, 1, 2])


def test_a_columns_number_is_as_narrow_as_it_can_be():
    assert ColumnTopK(1 / 256).num_bits((3, 256)) == 3 * 32 + 8
    assert ColumnTopK(1 / 257).num_bits((3, 257)) == 3 * 32 + 16


def _mask(index, rows):
    mask = np.zeros((rows, index.shape[1]), bool)
    np.put_along_axis(mask, index, True, 0)
    return mask


@pytest.mark.parametrize("shape", [(768, 3072), (48, 48), (5, 1000), (1, 7)], ids=str)
def test_blocks_hold_everything_once_and_spread_rows_and_columns(shape):
    blocks = Blocks.of(shape, 256)
    assert blocks.length <= 256
    number = np.arange(math.prod(shape)).reshape(shape) % blocks.count
    for line in (number[shape[0] // 2], number[:, shape[1] // 2]):
        assert np.bincount(line).max() <= -(-len(line) // blocks.count)
    x = jnp.asarray(gaussian(shape), jnp.float32)
    every = jnp.broadcast_to(
        jnp.arange(blocks.length)[:, None], (blocks.length, blocks.count)
    )
    np.testing.assert_array_equal(blocks.put(blocks.split(x), every, shape), x)


def test_a_heavy_row_or_column_costs_blocks_little():
    for axis in (0, 1):
        x = 1e-3 * gaussian((64, 96))
        np.moveaxis(x, axis, 0)[5] *= 1e3
        found, best = (
            np.sum((decoded(TopK(0.1, block), x) - x) ** 2) for block in (256, None)
        )
        assert found < 1.5 * best


@pytest.mark.parametrize(
    ("length", "fraction", "name", "dtype"),
    [
        (256, 0.1, "index", jnp.uint8),
        (256, 0.2, "bitmap", jnp.uint8),
        (1000, 0.05, "index", jnp.uint16),
        (1000, 0.1, "bitmap", jnp.uint8),
        (70000, 0.01, "index", jnp.uint32),
    ],
)
def test_top_k_sends_whichever_index_is_smaller(length, fraction, name, dtype):
    payload = TopK(fraction, length).payload_shapes((1, length))
    assert payload[name].dtype == dtype
    assert set(payload) == {"values", name}


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)], ids=str)
def test_exact_rank_k_is_numpys(shape):
    x = gaussian(shape)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    expected = (u[:, :5] * s[:5]) @ vt[:5]
    # Singular values near 10 and vectors in float32, whose roundings depend on how
    # many threads share a product.
    np.testing.assert_allclose(decoded(RankK(5 / 24, exact=True), x), expected, 0, 1e-4)


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)], ids=str)
def test_rank_k_reproduces_what_has_that_rank(shape, warm_start, key):
    for rank in (1, 3, 5):
        x = gaussian((shape[0], rank)) @ gaussian((rank, shape[1]), 1)
        found = decoded(RankK(5 / 24, warm_start=warm_start), x, key)
        # Where the rank is below r, P's columns depend on each other, and the roundings
        # of float32 go through an ill-conditioned inverse: some 3e-4, by the number of
        # threads. A direction missed would be of the order of 1.
        assert np.linalg.norm(found - x) < 2e-3 * np.linalg.norm(x)


def test_rank_k_is_a_projection_of_its_matrix(key):
    x = gaussian((24, 40))
    payload = RankK(0.25).compress(jnp.asarray(x, jnp.float32), key=key)
    p = np.asarray(payload["p"], np.float64)
    expected = p @ np.linalg.lstsq(p, x, rcond=None)[0]
    np.testing.assert_allclose(decoded(RankK(0.25), x, key), expected, 0, 1e-4)


def test_more_power_iterations_keep_more(key):
    x = gaussian((24, 40)) @ np.diag(0.9 ** np.arange(40))
    best = np.linalg.svd(x)[1][5:]
    losses = [
        np.linalg.norm(decoded(RankK(5 / 24, num_steps), x, key) - x)
        for num_steps in (1, 2, 4, 16)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1.02 * np.linalg.norm(best)


def test_warm_start_finds_the_best_directions_of_a_constant_matrix(key):
    x = gaussian((24, 40)) @ np.diag(0.8 ** np.arange(40))
    compressor = RankK(6 / 24, warm_start=True)
    state = compressor.init(x.shape)
    assert state.shape == (40, 6)
    for step in range(12):
        payload, state = compressor.compress_with(
            jnp.asarray(x, jnp.float32), state, key=jax.random.fold_in(key, step)
        )
    found = np.asarray(compressor.decompress(payload, x.shape), np.float64)
    # One column of six is fresh: the other five hold the five best directions.
    assert np.linalg.norm(found - x) < 1.02 * np.linalg.norm(np.linalg.svd(x)[1][5:])


def test_warm_start_survives_zero_and_non_finite_matrices(key):
    compressor = RankK(0.25, warm_start=True)
    state = first = compressor.init((24, 40))
    for bad in (jnp.zeros((24, 40)), jnp.full((24, 40), jnp.nan)):
        _, state = compressor.compress_with(bad, state, key=key)
    np.testing.assert_array_equal(state, first)


def numpy_natural(x):
    """The nearest power of two, ties up, by the parts of a float."""
    mantissa, exponent = np.frexp(np.abs(x))  # x = mantissa·2^exponent, from 1/2 on
    rounded = np.where(mantissa >= 0.75, np.ldexp(1.0, exponent), 0)
    rounded = np.where(mantissa < 0.75, np.ldexp(0.5, exponent), rounded)
    return np.where(x == 0, 0.0, np.sign(x) * rounded)


@pytest.mark.parametrize("bits", [8, 9])
def test_natural_is_numpys(bits):
    x = gaussian((24, 40)) * 10.0 ** np.random.default_rng(1).uniform(-8, 8, (24, 40))
    x[0, :4] = [0.0, 1.5, -1.5, 1.0]
    x = x.astype(np.float32).astype(np.float64)
    found = decoded(Natural(bits=bits), x)
    np.testing.assert_array_equal(found, numpy_natural(x))
    assert (abs(found - x) <= abs(x) / 3).all()


def test_natural_at_the_ends_of_its_range():
    x = jnp.array([[2.0**-126, 1.9 * 2.0**-127, 3.4e38, -(2.0**127)]])
    for bits in (8, 9):
        tiny = 2.0**-126 if bits == 9 else 0.0  # 2⁻²⁵³ of the largest
        expected = [[tiny, 0.0, 2.0**127, -(2.0**127)]]
        np.testing.assert_array_equal(decoded(Natural(bits=bits), x), expected)


def test_stochastic_natural_is_unbiased(key):
    x = jnp.asarray(gaussian((8, 8)), jnp.float32)
    compressor = Natural(stochastic=True)
    keys = jax.random.split(key, 4000)
    found = jax.vmap(
        lambda k: compressor.decompress(compressor.compress(x, key=k), (8, 8))
    )(keys)
    mean = np.asarray(found, np.float64).mean(0)
    # The variance is at most x²/8: five standard errors of the mean of 4000.
    assert (
        abs(mean - np.asarray(x)) <= 5 * abs(np.asarray(x)) / (8 * 4000) ** 0.5
    ).all()


def test_column_top_k_keeps_the_heaviest_columns():
    x = gaussian((24, 40))
    norms = np.linalg.norm(x, axis=0)
    expected = np.where(norms >= np.sort(norms)[-10], x, 0.0)
    np.testing.assert_array_equal(decoded(ColumnTopK(0.25), x), expected)


def test_rand_k_keeps_every_entry_equally_often(key):
    ones = jnp.ones((6, 35))
    compressor = RandK(0.25, block=60)
    keys = jax.random.split(key, 2000)
    found = jax.vmap(
        lambda k: compressor.decompress(compressor.compress(ones, key=k), ones.shape)
    )(keys)
    assert set(np.unique(found)) == {0.0, 1.0}
    alpha = compressor.alpha(ones.shape)
    # Binomial: of 210 frequencies, five standard deviations off has a chance of 1e-4.
    margin = 5 * (alpha * (1 - alpha) / 2000) ** 0.5
    assert (abs(np.asarray(found).mean(0) - alpha) < margin).all()


def test_scaled_sign_is_the_mean_magnitude():
    x = gaussian((24, 40))
    np.testing.assert_allclose(
        decoded(ScaledSign(), x), abs(x).mean() * np.sign(x), 1e-6
    )


def test_dropout_is_all_or_nothing(key):
    x = gaussian((3, 4))
    kept = [decoded(Dropout(0.25), x, k).any() for k in jax.random.split(key, 400)]
    assert abs(np.mean(kept) - 0.25) < 5 * (0.25 * 0.75 / 400) ** 0.5


def test_rank_k_fits_its_second_factor_to_the_first_as_it_arrives(key):
    x = gaussian((24, 40))
    compressor = Composed(RankK(0.25), Natural())
    payload = compressor.compress(jnp.asarray(x, jnp.float32), key=key)
    p = np.asarray(Natural().decompress(payload["p"], (24, 6)), np.float64)
    q = np.linalg.lstsq(p, x, rcond=None)[0].T
    found = np.asarray(Natural().decompress(payload["q"], (40, 6)), np.float64)
    assert (abs(found - q) <= abs(q) / 3 + 1e-4).all()


@pytest.mark.parametrize(
    ("compressor", "shape", "message"),
    [
        (TopK(0.001), (16, 16), r"at least one of 256 entries, got 0.001.*rounds to 0"),
        (ColumnTopK(0.01), (16, 16), r"at least one of 16 columns, got 0.01"),
        (RankK(0.01), (16, 16), r"at least one of 16 singular values, got 0.01"),
        (TopK(1.0), (16, 16), r"takes 8192 bits in float32, got 8448 bits"),
        (RankK(0.5), (16, 16), r"takes 8192 bits in float32, got 8192 bits"),
        (ScaledSign(), (1, 1), r"takes 32 bits in float32, got 40 bits"),
        (Natural(), (2**16, 2**16), r"at most 2147483648 entries.*has 4294967296"),
        (Identity(), (0, 3), r"must be \(m, n\) of at least \(1, 1\)"),
        (Composed(ScaledSign(), TopK(0.1)), (9, 9), r"at least one of 1 entries"),
    ],
    ids=repr,
)
def test_what_does_not_fit_a_shape_is_refused(compressor, shape, message):
    with pytest.raises(ValueError, match=message) as raised:
        compressor.check(shape, "block_3/kernel")
    for part in (repr(compressor), str(shape), "'block_3/kernel'"):
        assert part in str(raised.value)


def test_dense_ones_may_be_as_large_as_the_matrix():
    for compressor in (Identity(), Damping(0.5), Dropout(0.5)):
        compressor.check((3, 4), "kernel")


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopK(0.0), r"`fraction` must be in \(0.0, 1.0\], got 0.0"),
        (lambda: TopK(jnp.float32(0.1)), "`fraction` must be a number"),
        (lambda: TopK(0.1, 0), "`block` must be a whole number of at least 1, got 0"),
        (lambda: RandK(0.1, 2**17), "`block` must be at most 65536, got 131072"),
        (lambda: RankK(1.5), r"`fraction` must be in \(0.0, 1.0\], got 1.5"),
        (lambda: RankK(0.1, 0), "`num_steps` must be a whole number"),
        (lambda: RankK(0.1, warm_start=1), "`warm_start` must be a bool, got 1"),
        (lambda: RankK(0.1, 2, exact=True), "`exact` must be alone"),
        (lambda: Natural(bits=7), "`bits` must be 8 or 9, got 7"),
        (lambda: Natural("yes"), "`stochastic` must be a bool, got 'yes'"),
        (lambda: Damping(2.0), r"`factor` must be in \(0.0, 2.0\), got 2.0"),
        (lambda: Dropout(0.0), r"`probability` must be in \(0.0, 1.0\], got 0.0"),
        (lambda: Composed(Natural(), TopK(0.1)), "`outer` must leave float32 values"),
        (lambda: Composed(TopK(0.1), 3), "`inner` must be a compressor, got 3"),
        (
            lambda: Composed(TopK(0.1), RankK(0.1, warm_start=True)),
            "`inner` must have no memory",
        ),
        (
            lambda: Composed(Composed(TopK(0.5), RandK(0.5)), Natural()),
            "`outer` must not be composed itself",
        ),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("rows", [5, 3000])
def test_selection_counts_in_32_bits_where_64_are_the_default(rows):
    x = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
    expected = selection.largest(jnp.asarray(x), 3)
    with jax.enable_x64(True):
        packed = selection.largest(jnp.asarray(x), 3)
        found = selection.positions(packed, 3)
    np.testing.assert_array_equal(packed, expected)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.sort(np.argsort(-abs(x), 0)[:3], 0))
