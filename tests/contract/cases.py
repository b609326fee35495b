"""What the contract is checked on: transformations, trees, and how to run them.

A new transformation is one more line in `CASES`; every test of this folder then runs
on it.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dropmuon_optax as dm

# Programs are small here and compiled by the hundred: a tenth of the time without
# LLVM's optimizations and the fusion emitters. (Eager calls compile as users' do.)
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
try:
    jax.jit(lambda x: x, compiler_options=QUICK).lower(0.0).compile()
except Exception:  # options come and go with XLA's versions; tests pass without, slower
    QUICK = {}

jit = functools.partial(jax.jit, compiler_options=QUICK)


class Case(NamedTuple):
    """A public transformation with its arguments."""

    name: str
    make: Callable[..., Any]
    arguments: dict[str, Any]
    needs_params: bool = False  # whether `update` must be given the parameters
    decays: bool | None = None  # whether weights shrink; None: where it needs them
    strict: bool = True  # False: optax.adam, which it holds, promotes int32 and float

    def build(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        return self.make(**{**self.arguments, **changes})

    def inject(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        static = tuple(name for name in STATIC if self.takes(name))
        make = optax.inject_hyperparams(self.make, static_args=static)
        return make(**{**self.arguments, **changes})

    @property
    def moves_by_decay(self) -> bool:
        return self.needs_params if self.decays is None else self.decays

    def takes(self, name: str) -> bool:
        return name in inspect.signature(self.make).parameters

    def promotion(self) -> contextlib.AbstractContextManager[Any]:
        return jax.numpy_dtype_promotion("strict" if self.strict else "standard")

    def __repr__(self) -> str:
        return self.name


LAYERS = dm.layers_by_path(None)


def ordered(params: Any) -> Any:
    """Every leaf of any tree a layer of its own."""
    flat, structure = jax.tree.flatten(LAYERS(params))
    flat = [dataclasses.replace(layer, index=i) for i, layer in enumerate(flat)]
    return jax.tree.unflatten(structure, flat)


def given(tree: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The layers of `tree`, leaving out what is masked."""

    def layers(params: dict[str, Any]) -> dict[str, Any]:
        masked = {k: x for k, x in params.items() if isinstance(x, optax.MaskedNode)}
        return {**tree, **masked}

    return layers


# What `inject_hyperparams` is not to make arrays of.
STATIC = ("layers", "sampling", "worker_compressor", "num_workers", "key")

# Numbers that bfloat16 holds exactly: `inject_hyperparams` rounds them to the dtype of
# the first leaf.
STEP = {"learning_rate": 0.125, "momentum": 0.875}
NESTEROV = {**STEP, "nesterov": True}
ADAM = {**STEP, "adam_b1": 0.875, "adam_b2": 0.9375}
DECAYS = {"weight_decay": 0.5, "adam_weight_decay": 0.5}
DROPS = {"layers": ordered, "sampling": dm.samplings.Full(), "key": np.uint32([0, 7])}
MESSAGES = {
    "layers": LAYERS,
    "worker_compressor": dm.compressors.Identity(),
    "num_workers": 1,
    "key": np.uint32([0, 7]),
}

CASES = [
    Case("gluon", dm.gluon, STEP),
    Case("gluon-decayed", dm.gluon, {**NESTEROV, "weight_decay": 0.5}, True),
    Case("gluon-constrained", dm.gluon, {**STEP, "constrained": True}, True),
    Case("muon", dm.muon, ADAM, strict=False),
    Case("muon-decayed", dm.muon, {**ADAM, **DECAYS}, True, strict=False),
    Case("scion", dm.scion, STEP, True),
    Case("scion-unconstrained", dm.scion, {**STEP, "constrained": False}),
    Case("drop_muon", dm.drop_muon, {**STEP, **DROPS}),
    Case("ef21_muon", dm.ef21_muon, {**STEP, **MESSAGES}, True, decays=False),
    Case("lmo", dm.scale_by_lmo, {"layers": LAYERS}),
    Case("momentum", dm.scale_by_momentum, {"momentum": 0.875}),
]

SHAPES = {
    "embed": {"embedding": (16, 8)},
    "block_0": {"kernel": (8, 8), "bias": (8,)},
    "block_1": {"kernel": (8, 8), "bias": (8,)},
    "conv": {"kernel": (3, 3, 4, 8)},
    "wide": {"kernel": (8, 16)},
    "head": {"kernel": (8, 16)},
}

TREES = {
    "float32": ("float32",),
    "bfloat16": ("bfloat16",),
    "mixed": ("float32", "bfloat16", "float16"),
}

every_case = pytest.mark.parametrize("case", CASES, ids=repr)
every_tree = pytest.mark.parametrize("kind", TREES)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def some_cases(*names: str) -> Any:
    """Where a case's hyperparameters can't matter: one line for each function."""
    return pytest.mark.parametrize("case", [case_named(n) for n in names], ids=repr)


def cases_with(argument: str) -> Any:
    chosen = [case for case in CASES if case.takes(argument)]
    return pytest.mark.parametrize("case", chosen, ids=repr)


def random_tree(kind: str, seed: int = 0) -> Any:
    """Weights (or gradients) of `SHAPES`, of the dtypes of `TREES[kind]` in turn."""
    rng, dtypes = np.random.default_rng(seed), TREES[kind]
    flat, structure = jax.tree.flatten(SHAPES, is_leaf=lambda s: isinstance(s, tuple))
    leaves = [
        jnp.asarray(rng.normal(size=shape), jnp.dtype(dtypes[i % len(dtypes)]))
        for i, shape in enumerate(flat)
    ]
    return jax.tree.unflatten(structure, leaves)


def apply(tx: Any, params: Any, state: Any, g: Any) -> tuple[Any, Any]:
    """One turn of a training loop: (parameters, state) after a gradient."""
    updates, state = tx.update(g, state, params)
    return optax.apply_updates(params, updates), state


class Run(NamedTuple):
    """A jitted training loop and what it went through: the reference of most tests."""

    tx: Any
    update: Callable[[Any, Any, Any], tuple[Any, Any]]
    grads: list[Any]
    params: list[Any]  # before the first step, after it, after the second, …
    states: list[Any]  # likewise
    updates: list[Any]
    num_traces: int


@functools.cache
def run(name: str, kind: str, num_steps: int = 3) -> Run:
    """The case of this name on a tree of this kind, for some steps."""
    case = case_named(name)
    tx, traces = case.build(), []

    @jit
    def update(g: Any, state: Any, params: Any) -> tuple[Any, Any]:
        traces.append(0)
        with case.promotion():  # whatever the promotion of the test that runs first
            return tx.update(g, state, params)

    grads = [random_tree(kind, seed=1 + step) for step in range(num_steps)]
    params, states, updates = [random_tree(kind)], [], []
    states.append(tx.init(params[0]))
    for g in grads:
        u, state = update(g, states[-1], params[-1])
        updates.append(u)
        states.append(state)
        params.append(optax.apply_updates(params[-1], u))
    return Run(tx, update, grads, params, states, updates, len(traces))


def types(tree: Any) -> list[Any]:
    """Shape, dtype, sharding and weakness of every leaf."""
    return [jax.typeof(leaf) for leaf in jax.tree.leaves(tree)]


def is_key(leaf: Any) -> bool:
    """Whether a leaf of a state is a key for random numbers, typed or its two words."""
    return leaf.dtype == jnp.uint32 or is_typed_key(leaf)


def is_typed_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def plain(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if is_typed_key(leaf) else leaf)


def assert_close(actual: Any, expected: Any) -> None:
    """Equal structure, dtypes, and values up to roundings of the leaf's largest.

    Programs that are the same on paper fuse differently. Newton–Schulz's polynomial is
    steep at small singular values, so that a rounding of its input, in float32, is
    dozens of its output. In narrower dtypes results are rounded once for each time
    that they are stored, in the buffer, the update and the weights: four roundings.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jax.typeof(a).dtype == jax.typeof(e).dtype
        if not jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_equal(plain(a), plain(e))
            continue
        dtype = jnp.finfo(a.dtype)
        roundings = (4 if dtype.bits < 32 else 64) * float(dtype.eps)
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        atol = roundings * np.abs(e).max(initial=0.0)
        np.testing.assert_allclose(a, e, rtol=0, atol=atol)


def assert_equal(actual: Any, expected: Any) -> None:
    """Equal structure, dtypes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jax.typeof(a).dtype == jax.typeof(e).dtype
        np.testing.assert_array_equal(plain(a), plain(e))
