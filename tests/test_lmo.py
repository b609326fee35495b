"""The tree-wide oracle: equal to one oracle call per leaf, in far fewer calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropmuon_optax as dm
from dropmuon_optax import counters, lmo
from dropmuon_optax.layers import views

SPECTRAL = dm.norms.Spectral()


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), "float32")


def layers_of(layer):
    return lambda params: jax.tree.map(lambda _: layer, params)


def update(layers, grads):
    tx = dm.scale_by_lmo(layers)
    return jax.jit(tx.update)(grads, tx.init(grads))[0]


def test_equals_one_call_per_leaf():
    grads = {f"w{i}": gaussian(6, 4, seed=i) for i in range(3)}
    grads |= {"other": gaussian(4, 6), "vector": gaussian(5), "scalar": gaussian()}
    layers = dm.layers_by_path(
        None,
        [("w1", SPECTRAL, 3.0), ("w|other", SPECTRAL, 0.5), ("", dm.norms.RMS(), 2.0)],
    )
    steps = update(layers, grads)
    for name, g in grads.items():
        norm = SPECTRAL if g.ndim == 2 else dm.norms.RMS()
        radius = 2.0 if g.ndim < 2 else 3.0 if name == "w1" else 0.5
        expected = -jax.jit(norm.lmo)(jnp.atleast_2d(g), radius).reshape(g.shape)
        # The stack's products may be summed in another order than one matrix's.
        np.testing.assert_allclose(steps[name], expected, rtol=1e-4, atol=1e-5)


def test_steps_point_along_the_gradient():
    g = {"w": gaussian(5, 7)}
    step = update(layers_of(dm.Layer(0, SPECTRAL)), g)["w"]
    assert jnp.sum(step * g["w"]) > 0


def num_products(layers, grads):
    program = lambda g: update(layers, g)  # noqa: E731
    return counters.count_primitives(program, grads)["dot_general"]


def test_one_stack_for_each_pair_of_sides_norm_and_dtype():
    grads = [gaussian(6, 4, seed=i) for i in range(12)]
    count = lambda tree: num_products(layers_of(dm.Layer(0, SPECTRAL)), tree)  # noqa: E731
    assert count(grads) == 5 * 3  # of the plain form, whose steps are written out
    assert count([*grads, gaussian(4, 6)]) == 15
    assert count([*grads, gaussian(6, 6)]) == 30
    assert count([*grads, gaussian(6, 4).astype("bfloat16")]) == 30


def each_alone(layers, grads):
    """One call of each leaf's own oracle."""

    def step(layer, g):
        return -jax.jit(layer.norm.lmo)(g, layer.radius)

    return jax.tree.map(step, layers(grads), grads)


@pytest.mark.parametrize("make", [dm.norms.muon_spectral, dm.norms.scion_spectral])
@pytest.mark.parametrize(("m", "n", "products"), [(4, 6, 15), (4, 16, 18)])
def test_scaled_norms_share_a_stack_whichever_side_is_long(make, m, n, products):
    grads = {"up": gaussian(m, n), "down": gaussian(n, m), "again": gaussian(n, m)}
    layers = dm.layers_by_path(
        None, [("up", make(), 2.0), ("down", make(), 3.0), ("again", SPECTRAL, 5.0)]
    )
    assert num_products(layers, grads) == products  # of the plain form, and the Gram
    expected, steps = each_alone(layers, grads), update(layers, grads)
    for name, step in steps.items():
        assert step.shape == grads[name].shape
        np.testing.assert_allclose(step, expected[name], rtol=1e-4, atol=1e-5)


def test_an_orthogonalization_of_the_users_sees_its_matrices_as_they_are():
    seen = []

    def orthogonalize(x):
        seen.append(x.shape)
        return x

    layers = layers_of(dm.Layer(0, dm.norms.Spectral(orthogonalize=orthogonalize)))
    update(layers, [gaussian(4, 6), gaussian(6, 4)])
    assert set(seen) == {(4, 6), (6, 4)}


def test_big_stacks_are_split(monkeypatch):
    grads = [gaussian(6, 4, seed=i) for i in range(5)] + [gaussian(3, 4, 6)]
    layers = lambda tree: [  # noqa: E731
        dm.Stacked(0, SPECTRAL) if g.ndim == 3 else dm.Layer(0, SPECTRAL) for g in tree
    ]
    whole = update(layers, grads)
    assert num_products(layers, grads) == 15
    monkeypatch.setitem(lmo.MAX_STACK_BYTES, "cpu", 2 * 6 * 4 * 4)
    assert num_products(layers, grads) == 4 * 15  # 2, 2, 1 and the leaf of 3
    for some, all_ in zip(update(layers, grads), whole, strict=True):
        np.testing.assert_allclose(some, all_, rtol=1e-4, atol=1e-5)


def test_views_are_gone_through_both_ways():
    grads = {"query": gaussian(8, 2, 4), "conv": gaussian(3, 3, 2, 8)}
    layers = dm.layers_by_path(
        None,
        [("query", SPECTRAL, 1.0, views.PER_HEAD_IN), ("conv", SPECTRAL, 1.0)],
    )
    steps = update(layers, grads)
    for head in range(2):
        expected = -SPECTRAL.lmo(grads["query"][:, head])
        np.testing.assert_allclose(steps["query"][:, head], expected, atol=1e-5)
    conv = -SPECTRAL.lmo(grads["conv"].reshape(18, 8)).reshape(3, 3, 2, 8)
    np.testing.assert_allclose(steps["conv"], conv, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 6, 4), (5, 3, 3, 2, 4), (5, 4)], ids=str)
def test_stacked_leaves_are_moved_slice_by_slice(shape):
    g = gaussian(*shape)
    norm = dm.norms.Frobenius() if len(shape) == 2 else SPECTRAL
    steps = update(layers_of(dm.Stacked(0, norm, 2.0)), {"kernel": g})["kernel"]
    alone = layers_of(dm.Layer(0, norm, 2.0))
    for j in range(5):
        expected = update(alone, {"kernel": g[j]})["kernel"]
        np.testing.assert_allclose(steps[j], expected, atol=1e-5)


def test_adaptive_radii_of_one_stack_are_each_their_own():
    exact = dm.norms.Spectral(num_steps=None)
    grads = [gaussian(4, 4, seed=i) * 10.0**i for i in range(3)]
    radii = [dm.AdaptiveRadius(1.0, 0.0), dm.AdaptiveRadius(0.0, 2.0)]
    radii.append(dm.AdaptiveRadius(3.0, 0.5))

    def layers(tree):
        return [dm.Layer(i, exact, radius) for i, radius in enumerate(radii)]

    steps = update(layers, grads)
    for g, step, radius in zip(grads, steps, radii, strict=True):
        dual = np.linalg.norm(g, "nuc")
        t = dual / (radius.l0 + radius.l1 * dual)
        assert np.linalg.norm(step, 2) == pytest.approx(t, rel=1e-5)


def test_adaptive_radius_at_the_ends_of_the_range():
    layers = layers_of(dm.Layer(0, dm.norms.MaxEntry(), dm.AdaptiveRadius(1.0, 0.25)))
    for g, expected in ((0.0, 0.0), (1e-30, 1e-30), (1e38, 4.0)):
        step = update(layers, {"w": jnp.full((2, 4), g)})["w"]
        # ‖g‖⋆ is the sum of 8 entries: for 1e38 it overflows, and t is 1/L¹.
        np.testing.assert_allclose(step, expected * (8 if g == 1e-30 else 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("g", "l0", "l1", "expected"),
    [(3e38, 100.0, 0.0, 3e36 * 8**0.5), (2e-38, 0.0, 0.5, 2.0)],
)
def test_adaptive_radius_of_gradients_whose_dual_norm_has_no_float(g, l0, l1, expected):
    """8 entries: ‖g‖⋆ = √8·g, which is too large, or of products that are too small."""
    layers = layers_of(dm.Layer(0, dm.norms.Frobenius(), dm.AdaptiveRadius(l0, l1)))
    step = update(layers, {"w": jnp.full((2, 4), g)})["w"]
    np.testing.assert_allclose(step, np.full((2, 4), expected / 8**0.5), rtol=1e-5)


@pytest.mark.usefixtures("without_type_checks")
def test_leaves_that_no_oracle_can_move_are_refused_by_name():
    tx = dm.scale_by_lmo(layers_of(dm.Layer(0, None)))
    with pytest.raises(ValueError, match="leaf 'a/b' must have a norm"):
        tx.init({"a": {"b": gaussian(2, 2)}})
    tx = dm.scale_by_lmo(layers_of(dm.Layer(0, SPECTRAL)))
    with pytest.raises(ValueError, match="leaf 'n' must be floating-point, got int32"):
        tx.init({"n": jnp.arange(3)})
    with pytest.raises(ValueError, match="leaf 'z' must be real floating-point, got c"):
        tx.init({"z": jnp.ones((2, 2), "complex64")})
    narrow = dm.Layer(0, SPECTRAL, view=views.PER_HEAD_IN)
    with pytest.raises(ValueError, match=r"leaf 'w' of shape \(2, 2\): `view` must"):
        dm.scale_by_lmo(layers_of(narrow)).init({"w": gaussian(2, 2)})
    with pytest.raises(
        ValueError, match="leaf 'w' must have a leading axis of length 3"
    ):
        dm.scale_by_lmo(layers_of(dm.Stacked(0, SPECTRAL, length=3))).init(
            {"w": gaussian(2, 2, 2)}
        )
    with pytest.raises(ValueError, match=r"`layers` must be a function, got \{\}"):
        dm.scale_by_lmo({}).init({"w": gaussian(2, 2)})


def test_an_empty_tree_is_no_trouble():
    assert update(dm.layers_by_path(None), {}) == {}
