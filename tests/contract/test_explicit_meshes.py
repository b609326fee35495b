"""Explicit meshes: every norm moves leaves sharded on one, in its context or not."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import jit
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dropmuon_optax as dm
from dropmuon_optax import norms

NORMS = [
    norms.Spectral(num_steps=2),
    norms.Spectral(num_steps=None),
    norms.Spectral(orthogonalize=dm.linalg.gram_newton_schulz),
    norms.Frobenius(),
    norms.Column(),
    norms.Row(),
    norms.MaxEntry(),
    norms.RMS(),
    norms.Scaled(norms.Column(), 2.0),
    norms.scion_spectral(),
    norms.scion_conv(3, 3),
    norms.scion_sign(),
    norms.scion_column(),
    norms.scion_row(),
]
SPECS = {"wide": P("x", "y"), "tall": P(None, "x"), "stack": P(None, "y", "x")}
SHAPES = {"wide": (8, 16), "tall": (16, 8), "stack": (3, 16, 8)}
VECTORS = {"wide": (16,), "tall": (8,), "stack": (8,)}
VECTOR_SPECS = {"wide": P("x"), "tall": P(("x", "y")), "stack": P(None)}
INDEX = {"wide": 0, "tall": 1, "stack": 1}
KEY = np.uint32([0, 7])
DROPS = {"sampling": dm.samplings.Progressive(), "key": KEY}

every_norm = pytest.mark.parametrize("norm", NORMS, ids=repr)
ADAPTIVE = dm.AdaptiveRadius(1.0, 2.0)
norms_and_radii = pytest.mark.parametrize(
    ("norm", "radius"),
    [(n, 2.0) for n in NORMS] + [(norms.Column(), ADAPTIVE), (NORMS[1], ADAPTIVE)],
    ids=repr,
)
contexts = pytest.mark.parametrize("in_context", [False, True], ids=["", "set_mesh"])


def layers_of(norm: Any, radius: Any) -> Any:
    def layer(path: Any, _: Any) -> dm.Layer:
        return dm.Layer(INDEX[path[0].key], norm, radius)

    return functools.partial(jax.tree.map_with_path, layer)


def transformations(layers: Any) -> list[Any]:
    return [
        dm.scale_by_lmo(layers),
        dm.gluon(0.5, layers, weight_decay=0.25, nesterov=True),
        dm.muon(0.5, layers=layers, weight_decay=0.25),
        dm.drop_muon(0.5, layers, **DROPS),
    ]


def trees(norm: Any) -> tuple[Any, Any, Any]:
    """A mesh, and a tree of one device and as it is sharded there."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    vectors = isinstance(norm, norms.RMS)
    shapes, specs = (VECTORS, VECTOR_SPECS) if vectors else (SHAPES, SPECS)
    rng = np.random.default_rng(0)
    alone = {k: jnp.float32(rng.normal(size=shape)) for k, shape in shapes.items()}
    put = {
        k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in alone.items()
    }
    return mesh, alone, put


def context(mesh: Any, in_context: bool) -> Any:
    return jax.set_mesh(mesh) if in_context else contextlib.nullcontext()


@norms_and_radii
@contexts
def test_every_norm_in_every_transformation(norm: Any, radius: Any, in_context: bool):
    mesh, _, params = trees(norm)
    transforms = transformations(layers_of(norm, radius))
    if radius == 2.0:
        transforms.append(dm.scion(0.5, layers_of(norm, radius)))
    with context(mesh, in_context), jax.numpy_dtype_promotion("standard"):
        for tx in transforms:
            updates, _ = jax.eval_shape(tx.update, params, tx.init(params), params)
            kinds = jax.tree.map(lambda x: (x.shape, x.dtype), updates)
            assert kinds == jax.tree.map(lambda x: (x.shape, x.dtype), params)


@norms_and_radii
def test_its_steps_are_those_of_one_device(norm: Any, radius: Any):
    _, alone, params = trees(norm)
    tx = dm.scale_by_lmo(layers_of(norm, radius))
    update = jit(lambda g: tx.update(g, tx.init(g))[0])
    for name, got in update(params).items():
        assert got.sharding.spec == params[name].sharding.spec
        expected = update(alone)[name]
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


@every_norm
@pytest.mark.parametrize("name", ["norm", "dual_norm", "lmo", "sharp"])
def test_a_stack_sharded_along_its_first_axis(norm: Any, name: str):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    stack = jnp.float32(np.random.default_rng(0).normal(size=(8, 1, 6)))
    put = jax.device_put(stack, NamedSharding(mesh, P(("x", "y"))))
    f = jit(jax.vmap(getattr(norm, name)))
    np.testing.assert_allclose(f(put), f(stack), rtol=2e-5, atol=2e-6)
