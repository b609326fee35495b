"""The laws of every compressor, on every shape and kind of matrix.

To put a new compressor under them, add one line to `COMPRESSORS`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from dropmuon_optax.compressors import (
    BFloat16,
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
)

COMPRESSORS = [
    Identity(),
    BFloat16(),
    Natural(),
    Natural(stochastic=True),
    Natural(bits=8),
    TopK(0.1),
    TopK(0.3, block=16),
    TopK(0.05, block=None),
    TopK(0.5, block=None),
    ColumnTopK(0.25),
    RankK(0.2),
    RankK(0.2, num_steps=2),
    RankK(0.2, warm_start=True),
    RankK(0.2, exact=True),
    RandK(0.2),
    RandK(0.25, block=16),
    Damping(0.5),
    Damping(1.5),
    Dropout(0.5),
    ScaledSign(),
    Composed(TopK(0.1), Natural()),
    Composed(TopK(0.2, block=16), Natural(bits=8)),
    Composed(ColumnTopK(0.5), TopK(0.25)),
    Composed(RandK(0.5), Natural(stochastic=True)),
    Composed(RankK(0.3), Natural()),
    Composed(RankK(0.3, warm_start=True), Natural()),
    Composed(ScaledSign(), Natural()),
    Composed(Damping(0.75), Natural()),
    Composed(TopK(0.5), Composed(RandK(0.5), Natural())),
]
SHAPES = [(24, 40), (40, 24), (7, 301), (33, 17)]
NUM_KEYS = 256

every_compressor = pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def matrices(shape):
    """Kinds of matrices, by what is hard about them."""
    rng = np.random.default_rng(7)
    full = rng.standard_normal(shape)
    heavy_row, one_hot = 1e-2 * full, np.zeros(shape)
    heavy_row[1] *= 1e3
    one_hot[2, 3] = -5.0
    low = rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))
    found = {
        "Gaussian": full,
        "heavy-tailed": rng.standard_t(1.5, shape),
        "heavy row": heavy_row,
        "heavy column": np.where(np.arange(shape[1]) == 2, 100.0, 1.0) * full,
        "low rank": low,
        "one entry": one_hot,
        "constant": np.full(shape, -1.5),
        "flat spectrum": np.eye(*shape),
        "spread": full * 10.0 ** rng.uniform(-3, 3, shape),
    }
    return {name: jnp.asarray(x, jnp.float32) for name, x in found.items()}


@functools.cache
def program(compressor):
    """C(x) from a matrix and a key, compiled once for each shape."""

    def run(x, key):
        payload = compressor.compress(x, key=key)
        return compressor.decompress(payload, x.shape)

    return jax.jit(run)


@functools.cache
def many(compressor):
    return jax.jit(jax.vmap(program(compressor), (None, 0)))


def double(x):
    return np.asarray(x, np.float64)


def loss(x, decoded):
    """‖C(x) − x‖²/‖x‖² in float64, for each of a stack of C(x)."""
    error = double(decoded) - double(x)
    return (error**2).sum((-2, -1)) / (double(x) ** 2).sum()


@every_shape
@every_compressor
def test_contraction(compressor, shape, key):
    alpha = compressor.alpha(shape)
    assert 0 < alpha <= 1
    for name, x in matrices(shape).items():
        if not compressor.random:
            found = loss(x, program(compressor)(x, key))
            # Float32 rounds the kept values once, the factors a few times.
            assert found <= 1 - alpha + 1e-5, name
            continue
        keys = jax.random.split(key, NUM_KEYS)
        found = loss(x, many(compressor)(x, keys))
        # The keys are fixed. With fresh ones, a mean this many standard errors too
        # high has a chance of 3e-5 a matrix (normal approximation).
        margin = 4 * found.std(ddof=1) / math.sqrt(NUM_KEYS)
        assert found.mean() <= 1 - alpha + margin + 1e-5, name


@every_compressor
def test_zero_goes_to_zero(compressor, key):
    zero = jnp.zeros((24, 40))
    np.testing.assert_array_equal(program(compressor)(zero, key), zero)


@every_compressor
def test_one_non_finite_entry_arrives_as_no_finite_matrix(compressor, key):
    x = matrices((24, 40))["Gaussian"]
    for bad in (math.nan, math.inf, -math.inf):
        # The smallest entry, which a selection would not have sent.
        where = np.unravel_index(np.argmin(np.abs(x)), x.shape)
        found = program(compressor)(x.at[where].set(bad), key)
        assert not np.isfinite(found).all()


@every_shape
@every_compressor
def test_shapes_dtypes_and_bits(compressor, shape, key):
    compressor.check(shape)
    for dtype in ("float32", "bfloat16"):
        x = matrices(shape)["Gaussian"].astype(dtype)
        payload = compressor.compress(x, key=key)
        leaves = jax.tree.leaves(payload)
        assert compressor.num_bits(shape) == 8 * sum(leaf.nbytes for leaf in leaves)
        allowed = {"float32", "uint8", "uint16", "uint32"}
        assert {str(leaf.dtype) for leaf in leaves} <= allowed
        decoded = compressor.decompress(payload, shape)
        assert decoded.shape == shape
        assert decoded.dtype == jnp.float32


@every_compressor
def test_jit_is_eager(compressor, key):
    x = matrices((24, 40))["Gaussian"]
    eager = compressor.decompress(compressor.compress(x, key=key), x.shape)
    compiled = program(compressor)(x, key)
    if not has_factors(compressor):
        np.testing.assert_array_equal(eager, compiled)
    else:  # products may sum in another order, and Natural rounds to the other side
        assert abs(loss(x, eager) - loss(x, compiled)) < 1e-2


@every_compressor
def test_a_stack_is_a_loop(compressor, key):
    stack = jnp.stack(list(matrices((24, 40)).values())[:4])
    keys = jax.random.split(key, 4)
    batched = jax.vmap(program(compressor))(stack, keys)
    loop = jnp.stack(
        [program(compressor)(*each) for each in zip(stack, keys, strict=True)]
    )
    if not has_factors(compressor):
        np.testing.assert_array_equal(batched, loop)
    else:
        for x, one, other in zip(stack, batched, loop, strict=True):
            assert abs(loss(x, one) - loss(x, other)) < 1e-2


@every_compressor
def test_under_shard_map_and_in_a_scan(compressor, key):
    """Each worker scans over its own two matrices, with memory where there is any."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    stack = jax.random.normal(key, (16, 24, 40))
    keys = jax.random.split(key, 16)

    def worker(stack, keys):
        state = compressor.init((24, 40))
        state = jax.tree.map(lambda a: jax.lax.pcast(a, "data", to="varying"), state)

        def step(state, each):
            x, key = each
            payload, state = compressor.compress_with(x, state, key=key)
            return state, compressor.decompress(payload, x.shape)

        return jax.lax.scan(step, state, (stack, keys))[1]

    spec = PartitionSpec("data")
    sharded = jax.shard_map(worker, mesh=mesh, in_specs=spec, out_specs=spec)
    found = jax.jit(sharded)(stack, keys)
    if compressor.stateful:
        return  # each worker's second matrix has another memory than a first one's
    for i in (0, 5, 15):
        expected = program(compressor)(stack[i], keys[i])
        if has_factors(compressor):
            assert abs(loss(stack[i], found[i]) - loss(stack[i], expected)) < 1e-2
        else:
            np.testing.assert_array_equal(found[i], expected)


@every_compressor
def test_powers_of_two_scale(compressor, key):
    """2^±96, about 1e±29, times the entries: nothing underflows or overflows."""
    x = matrices((24, 40))["Gaussian"]
    expected = double(program(compressor)(x, key))
    for exponent in (-96, 96):
        found = program(compressor)(x * 2.0**exponent, key)
        np.testing.assert_array_equal(double(found) / 2.0**exponent, expected)


@every_compressor
def test_nouns_compare_hash_and_print(compressor):
    assert hash(compressor) == hash(compressor)
    assert "0x" not in repr(compressor)
    assert eval(repr(compressor), globals()) == compressor


@every_compressor
def test_a_key_is_asked_for_where_it_is_used(compressor):
    x = jnp.ones((24, 40))
    if compressor.random:
        with pytest.raises(ValueError, match="`key` must be a key of"):
            compressor.compress(x)
    else:
        np.testing.assert_array_equal(
            program(compressor)(x, None), program(compressor)(x, jax.random.key(3))
        )


@pytest.mark.usefixtures("without_type_checks")
@every_compressor
def test_what_is_no_matrix_or_no_payload_is_refused(compressor, key):
    with pytest.raises(ValueError, match=r"`x` must be a matrix of shape \(m, n\)"):
        compressor.compress(jnp.zeros((2, 3, 4)), key=key)
    with pytest.raises(ValueError, match="`x` must be real floating-point, got int32"):
        compressor.compress(jnp.zeros((2, 3), jnp.int32), key=key)
    payload = compressor.compress(jnp.ones((24, 40)), key=key)
    with pytest.raises(ValueError, match="`payload` must be one of"):
        compressor.decompress(payload, (48, 40))


def has_factors(compressor):
    parts = [getattr(compressor, name, None) for name in ("outer", "inner")]
    return isinstance(compressor, RankK) or any(
        part is not None and has_factors(part) for part in parts
    )


@every_compressor
def test_what_it_says_of_itself_is_so(compressor):
    shape = (24, 40)
    payload = jax.tree.leaves(compressor.payload_shapes(shape))
    floats = any(a.dtype == jnp.float32 for a in payload)
    assert compressor.holds_floats == floats
    assert compressor.stateful == bool(jax.tree.leaves(compressor.init(shape)))
    bits = compressor.num_bits(shape)
    assert compressor.is_dense == (bits == 32 * 24 * 40)
    if compressor.symmetric:
        assert bits == compressor.num_bits(shape[::-1])
        assert compressor.alpha(shape) == compressor.alpha(shape[::-1])


def test_what_has_no_floats_left_is_composed_with_nothing():
    for outer in (BFloat16(), Natural(), Composed(TopK(0.5), Natural())):
        with pytest.raises(ValueError, match="`outer` must"):
            Composed(outer, Natural())
