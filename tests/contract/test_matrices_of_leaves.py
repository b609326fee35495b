"""Leaves that hold several matrices, cut apart in NumPy and stepped one by one.

Fused queries, keys and values; experts; layers that a scan has stacked along any axis;
and all of that at once. Every optimizer must do to the leaf what its box does to the
matrices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dropmuon_optax as dm
from dropmuon_optax import norms
from dropmuon_optax.compressors import Identity, Natural, TopK
from tests.reference import boxes, drop_muon, ef21, oracles

STEPS, B, KEY = 5, 5, jax.random.key(3)
SHAPES = {
    "fused": (8, 14),  # layer 0
    "scanned": (8, 3, 14),  # layers 1 to 3: scan along axis 1, fused
    "experts": (3, 2, 6, 5),  # layers 1 to 3, two experts each
    "experts_last": (2, 6, 5, 3),  # likewise, scan along the last axis
    "out_first": (14, 8),  # layer 4, fused along the first axis
}
ENDS = {"q": slice(0, 8), "k": slice(8, 12), "v": slice(12, 14)}
SPLIT = (8, 4, 2)
IN_OUT, OUT_IN = dm.View((-2,), (-1,)), dm.View((1,), (0,), split=SPLIT)
FUSED = dm.View((0,), (1,), split=SPLIT)


def layers_in(norm, radius=1.0):
    """A function of the tree: every leaf in this norm."""

    def layers(params):
        return {
            "fused": dm.Layer(0, norm, radius, FUSED),
            "scanned": dm.Stacked(1, norm, radius, FUSED, axis=1),
            "experts": dm.Stacked(1, norm, radius, IN_OUT),
            "experts_last": dm.Stacked(1, norm, radius, IN_OUT, axis=-1),
            "out_first": dm.Layer(4, norm, radius, OUT_IN),
        }

    def present(params):
        return {
            name: params[name] if isinstance(params[name], optax.MaskedNode) else layer
            for name, layer in layers(params).items()
        }

    return present


def matrices(tree):
    """The matrices (fan_in, fan_out) of a tree, {(leaf, …): matrix}."""
    x = {name: np.asarray(leaf) for name, leaf in tree.items()}
    found = {}
    for part, where in ENDS.items():
        found["fused", 0, part] = x["fused"][:, where]
        found["out_first", 4, part] = x["out_first"][where].T
        for j in range(3):
            found["scanned", 1 + j, part] = x["scanned"][:, j, where]
    for j in range(3):
        for e in range(2):
            found["experts", 1 + j, e] = x["experts"][j, e]
            found["experts_last", 1 + j, e] = x["experts_last"][e, :, :, j]
    return found


def normal(seed, *lead):
    """A float64 tree, its entries of many sizes so that pieces can't stand in."""
    rng = np.random.default_rng(seed)
    sizes = {"fused": np.repeat([1e-3, 1.0, 30.0], SPLIT)}
    return {
        name: rng.standard_normal((*lead, *shape)) * sizes.get(name, 1.0)
        for name, shape in SHAPES.items()
    }


def gradients(x, k):
    """∇f of one tree or of one dictionary of matrices, at step k."""
    noise = normal(10 + k)
    noise = noise if "fused" in x else matrices(noise)
    return {name: 0.1 * value + noise[name] for name, value in x.items()}


def run(tx, actives=None, dtype="float64"):
    params = {k: jnp.asarray(x, dtype) for k, x in normal(0).items()}
    state = tx.init(params)
    for k in range(STEPS):
        how = {} if actives is None else {"active": actives[k]}
        g = {n: jnp.asarray(x, dtype) for n, x in gradients(params, k).items()}
        updates, state = jax.jit(tx.update, static_argnames="active")(
            g, state, params, **how
        )
        params = optax.apply_updates(params, updates)
    return params


def boxed(step):
    """The matrices after all steps of a box (x, momentum, g) -> (x, momentum)."""
    x = matrices(normal(0))
    m = {name: np.zeros_like(value) for name, value in x.items()}
    for k in range(STEPS):
        g = gradients(x, k)
        for name in x:
            x[name], m[name] = step(x[name], m[name], g[name])
    return x


def assert_agree(params, expected, tolerance=1e-9):
    found = matrices(params)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=tolerance, err_msg=name)


EXACT = norms.Spectral(num_steps=None)
MUON = layers_in(norms.muon_spectral(EXACT))
SCION = layers_in(norms.scion_spectral(EXACT), 2.0)


@pytest.fixture(autouse=True)
def _float64(request):
    """Everywhere but on the wire, which is float32."""
    wide = "ef21" not in request.node.name
    with jax.enable_x64(wide), jax.numpy_dtype_promotion("standard"):
        yield


def test_muon():
    found = run(dm.muon(0.1, MUON))
    box = functools.partial(
        boxes.muon_step,
        lr=0.1,
        beta=0.95,
        decay=0.0,
        nesterov=True,
        orthogonalize=oracles.polar,
    )
    assert_agree(found, boxed(box))


@pytest.mark.parametrize("constrained", [True, False])
def test_scion(constrained):
    found = run(dm.scion(0.1, SCION, constrained=constrained))
    box = functools.partial(
        boxes.scion_step,
        lr=0.1,
        alpha=0.1,
        radius=2.0,
        maximizer=oracles.scion_spectral,
        constrained=constrained,
    )
    assert_agree(found, boxed(box))


@pytest.mark.parametrize("norm", ["spectral", "sign", "columns"])
def test_gluon(norm):
    layer_norm, maximizer = {
        "spectral": (norms.scion_spectral(EXACT), oracles.scion_spectral),
        "sign": (norms.scion_sign(), oracles.scion_sign),
        "columns": (norms.scion_column(), oracles.scion_output_columns),
    }[norm]
    found = run(dm.gluon(0.1, layers_in(layer_norm, 3.0)))
    box = functools.partial(boxes.gluon_step, t=0.3, beta=0.9, maximizer=maximizer)
    assert_agree(found, boxed(box))


def test_gluon_with_a_radius_for_each_matrix():
    found = run(dm.gluon(1.0, layers_in(EXACT, dm.AdaptiveRadius(2.0, 0.5)), 0.0))

    def box(x, m, g):
        nuclear = functools.partial(np.linalg.norm, ord="nuc")
        t = boxes.gluon_adaptive_radius(g, nuclear, 2.0, 0.5)
        return boxes.gluon_step(x, m, g, t=t, beta=0.0, maximizer=oracles.polar)

    assert_agree(found, boxed(box))


@pytest.mark.parametrize("static", [True, False], ids=["static", "sampled"])
@pytest.mark.parametrize(
    "sampling", [dm.samplings.Progressive(), dm.samplings.Nice(2)], ids=repr
)
def test_drop_muon(sampling, static):
    tx = dm.drop_muon(0.1, layers_in(EXACT), sampling, key=KEY, momentum=0.75)
    drawn = [dm.active_layers(sampling, B, KEY, k) for k in range(STEPS)]
    found = run(tx, drawn if static else None)
    start = matrices(normal(0))
    *_, expected = drop_muon.drop_muon(
        start,
        gradients,
        {name: name[1] for name in start},
        [{i for i in range(B) if active[i]} for active in drawn],
        dict.fromkeys(start, drop_muon.spectral),
        lambda name, k: 0.1,
        beta=0.25,
    )
    assert_agree(found, expected)


NUMPY = {
    "dense": ((Identity(), None), (ef21.identity, None)),
    "compressed": (
        (TopK(0.3, block=None), Natural()),
        (ef21.top_k(0.3), ef21.natural),
    ),
}


@pytest.mark.parametrize(
    ("which", "topology", "drops"),
    [
        ("dense", "owner", True),
        ("compressed", "owner", True),
        ("dense", "gather", False),
    ],
)
def test_ef21_muon(which, topology, drops):
    (worker, server), (numpy_worker, numpy_server) = NUMPY[which]
    tx = dm.ef21_muon(
        0.1,
        layers_in(EXACT),
        worker,
        server,
        0.75,
        num_workers=2,
        topology=topology,
        key=KEY,
    )
    sets = [(True,) * B] * 3
    if drops:
        sets = [(False, True, False, True, True), (True, False, True, True, False)]
    params = {k: jnp.asarray(x, "float32") for k, x in normal(0).items()}
    state = tx.init(params)

    @functools.partial(jax.jit, static_argnames="active")
    def turn(params, state, noise, active):
        def step(params, state, noise):
            g = {n: noise[n][0] + 0.1 * params[n] for n in params}
            updates, state = tx.update(g, state, params, active=active)
            return optax.apply_updates(params, updates), state

        return dm.worker_map(step, "data", state)(params, state, noise)

    noise = [normal(20 + k, 2) for k in range(len(sets))]
    for k, active in enumerate(sets):
        g = {name: jnp.asarray(x, "float32") for name, x in noise[k].items()}
        params, state = turn(params, state, g, active)
    apart = [[matrices({n: x[j] for n, x in z.items()}) for j in (0, 1)] for z in noise]
    start = matrices(normal(0))
    *_, (W, X) = ef21.ef21_muon(
        start,
        lambda W, j, k: {name: apart[k][j][name] + 0.1 * W[name] for name in W},
        2,
        dict.fromkeys(start, drop_muon.spectral),
        dict.fromkeys(start, 0.1),
        0.25,
        dict.fromkeys(start, numpy_worker),
        dict.fromkeys(start, numpy_server) if numpy_server else None,
        [[name for name in start if active[name[1]]] for active in sets],
    )
    # A float32 rounding near a power of two may tip an entry, by less than a step.
    tolerance = 2e-4 if server is None else 2e-2
    assert_agree(params, W, tolerance)
    assert_agree(dm.ef21_muon_eval_params(state, params), X, 2e-4)


def test_init_on_ball():
    start = {k: jnp.asarray(x) for k, x in normal(0).items()}
    for x in matrices(dm.init_on_ball(start, SCION, key=KEY)).values():
        m, n = x.shape
        # Radius 2 in the norm √(m/n)·‖·‖₂, and all singular values alike.
        values = np.linalg.svd(x, compute_uv=False)
        np.testing.assert_allclose(values, 2 * np.sqrt(n / m), rtol=1e-6)


def test_smoothness_has_a_point_for_each_matrix():
    x = {k: jnp.asarray(v) for k, v in normal(0).items()}
    y = {k: jnp.asarray(v) for k, v in normal(1).items()}
    grad = lambda params: jax.tree.map(lambda w: w**3, params)  # noqa: E731
    layers = layers_in(EXACT)
    points = dm.measure_smoothness(grad, layers, x, y)
    step = matrices({k: y[k] - x[k] for k in x})
    change = matrices({k: y[k] ** 3 - x[k] ** 3 for k in x})
    # Leaf by leaf, piece by piece, layer by layer.
    order = sorted(step, key=lambda name: (name[0], "qkv".find(str(name[2])), name[1]))
    np.testing.assert_allclose(
        points.step[0], [np.linalg.norm(step[name], 2) for name in order], rtol=1e-6
    )
    np.testing.assert_allclose(
        points.change[0],
        [np.linalg.norm(change[name], "nuc") for name in order],
        rtol=1e-6,
    )
    fits = dm.fit_smoothness(points, layers, x)
    assert [fit.path for fit in fits] == [name[0] for name in order]
    radii = dm.estimated_layers(layers, fits, max_honesty=np.inf)(x)
    assert radii["scanned"].axis == 1


def test_describe_counts_them(capsys):
    shapes = {k: jax.ShapeDtypeStruct(s, "float32") for k, s in SHAPES.items()}
    rows = dm.describe(MUON, shapes).splitlines()[1:]
    assert capsys.readouterr().out
    seen = {row.split()[0]: row.rpartition("1.0  ")[2].strip() for row in rows}
    assert seen == {
        "experts": "6 × (6, 5)",
        "experts_last": "6 × (6, 5)",
        "fused": "1 × (8, 8) + 1 × (8, 4) + 1 × (8, 2)",
        "out_first": "1 × (8, 8) + 1 × (8, 4) + 1 × (8, 2)",
        "scanned": "3 × (8, 8) + 3 × (8, 4) + 3 × (8, 2)",
    }
    assert "1…3" in next(row for row in rows if row.startswith("experts_last"))
    sent = dm.describe(MUON, shapes, Natural()).splitlines()[1:]
    assert all("Natural()" in row for row in sent)
