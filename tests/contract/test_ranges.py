"""No silent zero and no plausible wrong step over the whole range of narrow floats."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import jit

import dropmuon_optax as dm

KEY = np.uint32([0, 7])
LAYERS = dm.layers_by_path([""], [("", dm.norms.Spectral(num_steps=None), 2.0)])
MAKE = {
    "gluon": lambda rate, layers=LAYERS: dm.gluon(rate, layers),
    "nesterov": lambda rate, layers=LAYERS: dm.gluon(rate, layers, nesterov=True),
    "muon": lambda rate, layers=LAYERS: dm.muon(rate, layers),
    "scion": lambda rate, layers=LAYERS: dm.scion(rate, layers, constrained=False),
    "drop_muon": lambda rate, layers=LAYERS: dm.drop_muon(
        rate, layers, dm.samplings.Full(), key=KEY, momentum=0.9
    ),
    "ef21_muon": lambda rate, layers=LAYERS: dm.ef21_muon(
        rate, layers, dm.compressors.Identity(), num_workers=1, key=KEY
    ),
}
every_algorithm = pytest.mark.parametrize("name", MAKE)
rng = np.random.default_rng(3)
U, _, V = np.linalg.svd(rng.standard_normal((4, 6)), full_matrices=False)
G = (U * [1.0, 0.9, 0.8, 0.7]) @ V  # whose polar factor is UV, in any dtype nearly


def scales(dtype: str) -> list[float]:
    """Powers of four from the bottom of the range to its top.

    The bottom of bfloat16 is where a tenth of the smallest entry, the new gradient's
    share of the momentum, is above 2⁻¹²⁶, below which XLA takes float32 for zero.
    """
    info = jnp.finfo(dtype)
    low = max(float(info.smallest_subnormal), 2.0**-114)
    powers = np.arange(np.log2(low), np.log2(float(info.max)), 2)
    return [float(2.0**power) for power in powers]


@every_algorithm
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_step_is_right_over_the_whole_range(name: str, dtype: str):
    tx = MAKE[name](0.25)
    x = jnp.zeros(G.shape, dtype)
    state, update = tx.init(x), jit(tx.update)
    for scale in scales(dtype):
        g = jnp.asarray(G * scale, dtype)
        u, s, v = np.linalg.svd(np.asarray(g, np.float64), full_matrices=False)
        step = np.asarray(update(g, state, x)[0], np.float64)
        rank = s > 1e-5 * s[0]
        expected = -0.5 * (u * rank) @ v
        # M is rounded to bfloat16 by its 2⁻⁹, which the polar factor takes on.
        np.testing.assert_allclose(step, expected, atol=1e-2, err_msg=str(scale))


@every_algorithm
def test_a_rate_below_half_precision_is_no_zero(name: str):
    """A small learning rate times a large radius, each out of float16's range."""
    x = jnp.zeros(G.shape, jnp.float16)
    tx = MAKE[name](optax.constant_schedule(1e-8))
    steps = tx.update(jnp.asarray(G, jnp.float16), tx.init(x), x)[0]
    assert not np.any(np.asarray(steps))  # 2e-8 is no float16: rounded once, honestly
    wide = dm.layers_by_path([""], [("", dm.norms.MaxEntry(), 6e4)])
    tx = dm.gluon(1e-8, wide)
    steps = tx.update(jnp.asarray(G, jnp.float16), tx.init(x), x)[0]
    np.testing.assert_allclose(np.abs(np.asarray(steps, float)), 6e-4, rtol=1e-3)


@every_algorithm
def test_a_radius_beyond_the_dtype_is_refused_by_name(name: str):
    far = dm.layers_by_path([""], [("", dm.norms.RMS(), 3e4)])
    tx = MAKE[name](0.1, far)
    params = {"a": {"kernel": jnp.ones((8, 8), jnp.float16)}}  # √64·3e4 > 65504
    with pytest.raises(ValueError, match=r"radius of 'a/kernel'.*float16 can hold"):
        tx.init(params)
    tx.init(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_the_momentum_of_half_precision_is_single():
    x = jnp.zeros((2, 2), jnp.float16)
    tiny = jnp.full((2, 2), 6e-8, jnp.float16)
    _, state = dm.scale_by_momentum(0.9).update(tiny, dm.scale_by_momentum().init(x))
    assert state.momentum.dtype == jnp.float32
    np.testing.assert_allclose(state.momentum, 0.1 * np.asarray(tiny, np.float32), 1e-6)
    asked = dm.scale_by_momentum(0.9, momentum_dtype="float16").init(x)
    assert asked.momentum.dtype == jnp.float16


@pytest.mark.usefixtures("standard_promotion")
def test_adamw_says_where_its_squares_overflow():
    """bfloat16 goes up to 3e38, and squares of float32 to the root of that."""
    tx, x = dm.muon(0.1), {"bias": jnp.zeros(3, jnp.bfloat16)}
    g = {"bias": jnp.asarray([1e30, 1.0, 1e18], jnp.bfloat16)}
    steps = np.asarray(tx.update(g, tx.init(x), x)[0]["bias"], float)
    assert np.isnan(steps[0])
    np.testing.assert_allclose(steps[1:], -0.1, rtol=1e-2)


TAKE_MASKS = {
    "gluon": lambda **more: dm.gluon(0.1, LAYERS, **more),
    "muon": lambda **more: dm.muon(0.1, LAYERS, **more),
    "drop_muon": lambda **more: dm.drop_muon(
        0.1, LAYERS, dm.samplings.Full(), key=KEY, **more
    ),
    "ef21_muon": lambda **more: dm.ef21_muon(
        0.1, LAYERS, dm.compressors.Identity(), num_workers=1, key=KEY, **more
    ),
}


@pytest.mark.parametrize("name", TAKE_MASKS)
def test_a_mask_of_no_decay_is_refused(name: str):
    make = TAKE_MASKS[name]
    with pytest.raises(ValueError, match=r"`weight_decay_mask` must be None where no"):
        make(weight_decay_mask=True)
    make(weight_decay_mask=True, weight_decay=0.1)
    if name == "muon":
        make(weight_decay_mask=True, adam_weight_decay=0.1)


@pytest.mark.parametrize("name", ["gluon", "muon", "scion"])
def test_a_set_of_layers_is_refused_by_what_moves_all(name: str):
    tx, params = MAKE[name](0.1), {"a": jnp.ones((4, 6)), "b": jnp.ones((4, 6))}
    state = tx.init(params)
    with pytest.raises(ValueError, match="`active` must go to what drops layers"):
        tx.update(params, state, params, active=(True, False))
    tx.update(params, state, params, active=None)
    beside = optax.partition(
        {
            "all": optax.GradientTransformation(tx.init, tx.update),
            "some": dm.drop_layers(
                optax.sgd(1.0),
                lambda p: jax.tree.map(lambda _: dm.Layer(0, None), p),
                dm.samplings.Full(),
                key=KEY,
            ),
        },
        {"a": "all", "b": "some"},
    )
    moved, _ = beside.update(params, beside.init(params), params, active=(True,))
    assert np.any(moved["a"])
    np.testing.assert_array_equal(moved["b"], -params["b"])
