"""Faults that Muons elsewhere have had, none of which is to be ours: a test each."""

import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES, Case, assert_equal, every_case, is_key, jit, run, types
from flax import nnx

import dropmuon_optax as dm
from dropmuon_optax import linalg, norms
from dropmuon_optax.counters import count_primitives
from dropmuon_optax.layers import views

MATRICES = dm.layers_by_path(None, [("", norms.muon_spectral(), 1.0)])


@pytest.fixture(autouse=True)
def _promotion() -> Iterator[None]:
    """`muon` holds `optax.adam`, which promotes integers and floats implicitly."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@functools.cache
def muon_step(dtype: str) -> Any:
    """One step of Muon on a matrix, jitted once for each dtype."""
    tx = dm.muon(1.0, MATRICES)

    @jit
    def step(g: jax.Array) -> jax.Array:
        params = {"kernel": jnp.zeros_like(g)}
        return tx.update({"kernel": g}, tx.init(params), params)[0]["kernel"]

    return step


def polar(x: Any) -> np.ndarray:
    u, _, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return u @ vt


def cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
def test_large_half_precision_matrices_are_not_silently_zero(scale: float):
    unit = normal(8, 8)
    g = (unit / jnp.abs(unit).max() * scale).astype(jnp.float16)
    assert scale < 100 or jnp.linalg.norm(g.astype(jnp.float32)) > 256
    step = -muon_step("float16")(g)
    # Newton–Schulz turns singular values into 0.68…1.13; cosines of 0.98 are usual.
    assert cosine(step, polar(g)) > 0.95


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-3, 1e12, 1e20, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_scale_of_the_gradient_has_no_effect(scale: float, dtype: str):
    g = normal(8, 8, dtype=dtype)
    small, usual = (g.astype(jnp.float32) * scale).astype(dtype), g
    # Rounding to the dtype after scaling is a relative error of its ε per entry, some
    # dozens of which Newton–Schulz makes at small singular values.
    atol = 64 * float(jnp.finfo(dtype).eps)
    got, expected = (muon_step(dtype)(x).astype(jnp.float32) for x in (small, usual))
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def test_nesterov_is_the_lerp_form_from_the_first_step():
    beta, tx = 0.95, dm.scale_by_momentum(0.95, nesterov=True)
    state, buffer = tx.init(jnp.zeros(5)), np.zeros(5)
    for k in range(5):
        g = np.random.default_rng(k).normal(size=5)
        buffer += (1 - beta) * (g - buffer)
        expected = g + beta * (buffer - g)
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state)
        # float32: a handful of roundings of numbers of order 1
        np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1e-6)


def test_too_few_coefficients_are_an_error():
    with pytest.raises(ValueError, match="`num_steps` must be at most 5"):
        norms.Spectral(num_steps=6, coefficients=linalg.CANS)
    with pytest.raises(ValueError, match="`num_steps` must be at most 3"):
        linalg.newton_schulz(
            jnp.eye(2), 5, linalg.Coefficients("three", ((2.0, -1.5, 0.5),) * 3, "here")
        )


def test_the_first_of_too_many_coefficients_are_used():
    triples = ((1.0, 0.0, 0.0), (3.0, 0.0, 0.0), (5.0, 0.0, 0.0))
    cubes = linalg.Coefficients("linear", triples, "here")
    # p(σ) = aσ alone: the product of the a's shows which steps ran.
    for num_steps, product in ((1, 1.0), (2, 3.0), (3, 15.0)):
        got = linalg.newton_schulz(jnp.diag(jnp.array([3.0, 4.0])), num_steps, cubes)
        np.testing.assert_allclose(jnp.diag(got), [0.6 * product, 0.8 * product], 1e-6)


def test_presets_exist_under_their_names():
    presets = [v for v in vars(linalg).values() if isinstance(v, linalg.Coefficients)]
    assert len(presets) >= 5
    for preset in presets:
        assert getattr(linalg, preset.name.upper()) is preset
        norms.Spectral(num_steps=len(preset.steps), coefficients=preset)


@pytest.mark.parametrize("make", [dm.gluon, dm.muon, dm.scion])
def test_docstrings_list_the_arguments_there_are(make: Any):
    text = inspect.getdoc(make) or ""
    listed = re.findall(r"(?m)^  (\w+): ", text.split("Args:")[1].split("Returns:")[0])
    assert listed == list(inspect.signature(make).parameters)
    for name in re.findall(r"`(\w+_geometry|layers_by_path|describe)\b", text):
        assert hasattr(dm, name)


@every_case
def test_a_bare_call_on_a_dictionary_works(case: Case):
    required = {k: v for k, v in case.arguments.items() if k in bare_arguments(case)}
    params = {"kernel": normal(4, 4), "bias": normal(4)}
    tx = case.make(**required)
    updates, _ = jax.eval_shape(tx.update, params, tx.init(params), params)
    assert types(updates) == types(params)


def bare_arguments(case: Case) -> list[str]:
    parameters = inspect.signature(case.make).parameters.values()
    return [p.name for p in parameters if p.default is inspect.Parameter.empty]


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4)])
def test_the_users_view_counts_in_the_oracle_and_in_the_scale(shape: tuple[int, ...]):
    # fan_out first: the matrix that the oracle sees, and whose sides scale the step,
    # is the transpose of the leaf with its other axes merged.
    view = views.View(tuple(range(1, len(shape))), (0,))
    norm = norms.muon_spectral(norms.Spectral(num_steps=None))
    tx = dm.scale_by_lmo(dm.layers_by_path(None, [("", norm, 1.0, view)]))
    g = normal(*shape)
    step, _ = tx.update({"w": g}, tx.init({"w": g}))
    matrix = np.asarray(g).reshape(shape[0], -1).T
    scale = max(1.0, matrix.shape[1] / matrix.shape[0]) ** 0.5
    got = np.asarray(step["w"]).reshape(shape[0], -1).T
    np.testing.assert_allclose(got, scale * polar(matrix), rtol=0, atol=1e-5)  # SVD


@pytest.mark.parametrize("make", [dm.muon, dm.gluon, dm.scion])
def test_stacked_scales_and_biases_are_not_orthogonalized(make: Any, capsys: Any):
    del capsys
    params = {"norm": {"scale": normal(6, 4)}, "dense": {"bias": normal(6, 4)}}
    program = count_primitives(
        lambda p: make(0.1).update(p, make(0.1).init(p), p)[0], params
    )
    assert program["dot_general"] == program["scan"] == program["while"] == 0


def test_matrices_stacked_over_layers_are_orthogonalized_one_by_one():
    layers = dm.layers_by_path(
        [r"blocks"], [("", norms.Spectral(), 1.0)], stacked="blocks"
    )
    one = dm.layers_by_path([r"blocks"], [("", norms.Spectral(), 1.0)])
    stack = normal(3, 4, 5)
    tx, g = dm.scale_by_lmo(layers), {"blocks": stack}
    got, _ = tx.update(g, tx.init(g))
    for j in range(3):
        tx, g = dm.scale_by_lmo(one), {"blocks": stack[j]}
        alone, _ = tx.update(g, tx.init(g))
        # the same program on the same numbers, batched: roundings of float32
        np.testing.assert_allclose(got["blocks"][j], alone["blocks"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("make", [dm.muon, dm.gluon, dm.scion])
def test_nnx_states_take_explicit_layers(make: Any):
    params = nnx.state(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Param)
    vector = (None, 1.0) if make is dm.muon else (norms.RMS(), 1.0)
    rules = [("bias", *vector), ("kernel", norms.Spectral(), 1.0)]
    tx = make(0.1, dm.layers_by_path(["kernel|bias"], rules))
    updates, _ = jax.eval_shape(tx.update, params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_twelve_leaves_of_one_shape_are_one_stack():
    params = {f"block_{i}": {"kernel": normal(4, 6, seed=i)} for i in range(12)}
    tx = dm.scale_by_lmo(MATRICES)
    counts = count_primitives(lambda p: tx.update(p, tx.init(p))[0], params)
    assert counts["dot_general"] == 15  # five plain steps
    more = {
        **params,
        "wide": {"kernel": normal(4, 8)},
        "tall": {"kernel": normal(8, 4)},
    }
    counts = count_primitives(lambda p: tx.update(p, tx.init(p))[0], more)
    assert counts["dot_general"] == 33  # both have sides of 4 and 8, the Gram form's


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_wide_buffer_does_not_widen_the_updates(nesterov: bool):
    params = {"kernel": normal(4, 4, dtype=jnp.bfloat16)}
    tx = dm.muon(0.1, nesterov=nesterov, momentum_dtype=jnp.float32)
    state = tx.init(params)
    assert optax.tree.get(state, "momentum")["kernel"].dtype == jnp.float32
    updates, _ = tx.update(params, state, params)
    assert updates["kernel"].dtype == jnp.bfloat16


@every_case
def test_states_hold_buffers_and_counts_and_nothing_else(case: Case):
    loop = run(case.name, "float32")
    shapes = {x.shape for x in jax.tree.leaves(loop.params[0])}
    for leaf in jax.tree.leaves(loop.states[0]):
        count = leaf.shape == () and leaf.dtype == jnp.int32
        one_workers = leaf.shape[1:] if leaf.shape[:1] == (1,) else leaf.shape
        assert count or is_key(leaf) or one_workers in shapes


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
@pytest.mark.parametrize("algorithm", [linalg.newton_schulz, linalg.gram_newton_schulz])
def test_wide_and_tall_matrices_are_both_right(shape: tuple, algorithm: Any):
    g = normal(*shape)
    assert cosine(algorithm(g), polar(g)) > 0.9
    assert cosine(-muon_step("float32")(g), polar(g)) > 0.9


@pytest.mark.parametrize("case", [c for c in CASES if not c.moves_by_decay], ids=repr)
def test_zero_gradients_give_zero_steps_in_half_precision(case: Case):
    params = {
        "kernel": normal(4, 4, dtype=jnp.float16),
        "bias": jnp.zeros(4, "float16"),
    }
    tx, zeros = case.build(), jax.tree.map(jnp.zeros_like, params)
    updates, _ = jit(tx.update)(zeros, tx.init(params), params)
    assert_equal(updates, zeros)


def test_convolutions_are_scaled_by_the_sides_of_their_matrix():
    g = {"conv": {"kernel": normal(3, 3, 2, 64)}}
    norm = norms.muon_spectral(norms.Spectral(num_steps=None))
    tx = dm.scale_by_lmo(dm.layers_by_path(None, [("", norm, 1.0)]))
    step, _ = tx.update(g, tx.init(g))
    singular = np.linalg.svd(step["conv"]["kernel"].reshape(18, 64), compute_uv=False)
    # The kernel's own last sides, or its first two, would give another number.
    np.testing.assert_allclose(singular, (64 / 18) ** 0.5, rtol=1e-5)  # SVD, float32


@pytest.mark.parametrize("make", [dm.muon, dm.gluon, dm.scion])
def test_depthwise_kernels_are_not_orthogonalized_by_default(make: Any):
    params = {"depthwise": {"kernel": normal(3, 3, 1, 8)}}
    tx = make(0.1)
    counts = count_primitives(lambda p: tx.update(p, tx.init(p), p)[0], params)
    assert counts["dot_general"] == 0
