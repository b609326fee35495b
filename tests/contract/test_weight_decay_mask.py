"""Which leaves decay: Optax's defaults, and a mask."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import apply, assert_close, jit

import dropmuon_optax as dm
from dropmuon_optax import compressors, linalg, norms, samplings

pytestmark = pytest.mark.usefixtures("standard_promotion")

KEY = np.uint32([0, 7])
RATE, DECAY = 0.125, 0.5
MASK = {"dense": {"kernel": True, "bias": False}, "stack": True, "head": False}


def weights(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    shapes = {
        "dense": {"kernel": (8, 4), "bias": (4,)},
        "stack": {"kernel": (3, 4, 4)},
        "head": {"kernel": (4, 8), "bias": (8,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


LAYERS = dm.layers_by_path(["dense", "stack", "head"], stacked="stack")
ORDER = dm.layers_by_path(
    ["dense", "stack", "head"],
    [("stack", norms.Spectral(), 1.0), ("", norms.RMS(), 1.0)],
    stacked="stack",
)


def by_name(params: Any) -> Any:
    """`MASK`, as a function of the parameters."""
    return {
        "dense": {name: name == "kernel" for name in params["dense"]},
        "stack": jax.tree.map(lambda x: x.ndim == 3, params["stack"]),
        "head": jax.tree.map(lambda _: False, params["head"]),
    }


def expected(plain: Any, params: Any) -> Any:
    """Updates without decay, and what decay adds to those of the mask."""
    return {
        "dense": {
            "kernel": plain["dense"]["kernel"]
            - RATE * DECAY * params["dense"]["kernel"],
            "bias": plain["dense"]["bias"],
        },
        "stack": jax.tree.map(
            lambda u, x: u - RATE * DECAY * x, plain["stack"], params["stack"]
        ),
        "head": plain["head"],
    }


def muon(**options: Any) -> Any:
    decays = {"adam_weight_decay": options["weight_decay"]} if options else {}
    return dm.muon(RATE, LAYERS, **options, **decays)


TRANSFORMATIONS = {
    "gluon": lambda **options: dm.gluon(RATE, LAYERS, **options),
    "muon": muon,
    "drop_muon": lambda **options: dm.drop_muon(
        RATE, LAYERS, samplings.Full(), key=KEY, **options
    ),
    "drop_layers(gluon), sampled": lambda **options: dm.drop_layers(
        dm.gluon(RATE, ORDER, **options), ORDER, samplings.RoundRobin(), key=KEY
    ),
    "ef21_muon": lambda **options: dm.ef21_muon(
        RATE, LAYERS, compressors.Identity(), num_workers=1, key=KEY, **options
    ),
    "masked": lambda **options: optax.masked(
        dm.gluon(RATE, LAYERS, **options),
        lambda tree: jax.tree.map(lambda _: True, tree),
    ),
    "partition": lambda **options: optax.partition(
        {
            "a": dm.gluon(RATE, LAYERS, **options),
            "b": dm.gluon(RATE, LAYERS, **options),
        },
        {"dense": {"kernel": "a", "bias": "b"}, "stack": "b", "head": "a"},
    ),
}


@pytest.mark.parametrize("mask", [MASK, by_name], ids=["tree", "function"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_mask_says_what_decays(name: str, mask: Any):
    make, params, g = TRANSFORMATIONS[name], weights(), weights(1)
    plain, decayed = make(), make(weight_decay=DECAY, weight_decay_mask=mask)

    @jit
    def both(states: Any) -> Any:
        steps = (
            tx.update(g, state, params)
            for tx, state in zip((plain, decayed), states, strict=True)
        )
        (without, first), (found, second) = steps
        return without, found, (first, second)

    states = plain.init(params), decayed.init(params)
    for _ in range(2 if "sampled" in name else 1):
        without, found, states = both(states)
        # What is dropped doesn't decay either.
        moves = jax.tree.map(lambda u: jnp.any(u != 0).astype(u.dtype), without)
        rows = jnp.any(without["stack"]["kernel"] != 0, axis=(1, 2), keepdims=True)
        moves["stack"]["kernel"] = rows.astype(jnp.float32)
        wanted = jax.tree.map(jnp.multiply, expected(without, params), moves)
        assert_close(found, wanted)


@pytest.mark.parametrize("active", [(True, False, True, False, True)], ids=str)
def test_a_static_set_and_a_mask(active: tuple[bool, ...]):
    params, g = weights(), weights(1)
    plain, decayed = (
        dm.drop_muon(RATE, LAYERS, samplings.Full(), key=KEY, **options)
        for options in ({}, {"weight_decay": DECAY, "weight_decay_mask": MASK})
    )
    without, _ = plain.update(g, plain.init(params), params, active=active)
    found, _ = decayed.update(g, decayed.init(params), params, active=active)
    wanted = expected(without, params)
    rows = jnp.array(active[1:4], jnp.float32)[:, None, None]
    wanted["stack"]["kernel"] = wanted["stack"]["kernel"] * rows
    assert_close(found, wanted)


@pytest.mark.parametrize("topology", ["owner", "gather"])
def test_several_workers_and_a_mask(topology: str):
    params = weights()

    def run(**options: Any) -> Any:
        tx = dm.ef21_muon(
            RATE,
            LAYERS,
            compressors.Identity(),
            num_workers=2,
            topology=topology,
            key=KEY,
            **options,
        )
        state = tx.init(params)

        def step(params: Any, state: Any, _: Any) -> Any:
            g = dm.local_params(params, "data")
            updates, state = tx.update(g, state, params)
            return updates, state

        return jit(dm.worker_map(step, "data", state))(params, state, jnp.zeros(2))[0]

    found = run(weight_decay=DECAY, weight_decay_mask=MASK)
    assert_close(found, expected(run(), params))


def optax_muon_and_ours(**options: Any) -> tuple[Any, Any]:
    layers = dm.layers_by_path(
        None,
        [
            ("kernel", norms.muon_spectral(norms.Spectral(coefficients=SAME)), 1.0),
            ("bias", None, 1.0),
        ],
    )
    shared = {"nesterov": False, **options}
    theirs = optax.contrib.muon(RATE, beta=0.9, ns_coeffs=SAME.steps[0], **shared)
    ours = dm.muon(RATE, layers, momentum=0.9, adam_b2=0.999, adam_eps=1e-8, **shared)
    return theirs, ours


SAME = linalg.KELLER_JORDAN


def minus_stack(tree: Any) -> Any:
    """Without what has three axes, which Optax's Muon sends to AdamW."""
    return {name: leaf for name, leaf in tree.items() if name != "stack"}


NO_KERNEL_OF_HEAD = {
    "dense": {"kernel": True, "bias": True},
    "head": {"kernel": False, "bias": True},
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": DECAY},
        {"weight_decay": DECAY, "adam_weight_decay": 0.25},
        {"weight_decay": DECAY, "weight_decay_mask": NO_KERNEL_OF_HEAD},
    ],
    ids=["none", "matrices", "both", "masked"],
)
def test_updates_are_those_of_optax_muon(options: dict[str, Any]):
    params = minus_stack(weights())
    theirs, ours = optax_muon_and_ours(**options)
    a, first = params, theirs.init(params)
    b, second = params, ours.init(params)
    for step in range(3):
        g = minus_stack(weights(1 + step))
        a, first = apply(theirs, a, first, g)
        b, second = apply(ours, b, second, g)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            # float32: Newton–Schulz is steep, and Optax adds 1e-8 to the norm
            np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)


def test_a_mask_holds_bools_and_fits():
    for mask in (1, "kernel", {"dense": 0.5}):
        with pytest.raises(ValueError, match="`weight_decay_mask` must be a tree of b"):
            dm.gluon(RATE, LAYERS, weight_decay=DECAY, weight_decay_mask=mask)
    tx = dm.gluon(RATE, LAYERS, weight_decay=DECAY, weight_decay_mask={"dense": True})
    with pytest.raises(ValueError, match="`weight_decay_mask` must be a tree of the"):
        tx.init(weights())
    tx = dm.gluon(RATE, LAYERS, weight_decay=DECAY, weight_decay_mask=lambda p: 1)
    with pytest.raises(ValueError, match=r"must be a tree of bools.*got 1"):
        tx.init(weights())


def test_a_function_that_was_called_as_a_schedule_is_refused():
    params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    mask = lambda tree: jax.tree.map(lambda x: jnp.ndim(x) > 1, tree)  # noqa: E731
    inject = optax.inject_hyperparams(dm.muon)
    with pytest.raises(ValueError, match=r"static_args=\(.weight_decay_mask.,\)"):
        inject(0.1, weight_decay=0.5, weight_decay_mask=mask).init(params)
    static = optax.inject_hyperparams(dm.muon, static_args=("weight_decay_mask",))
    for make in (static, dm.muon):
        tx = make(0.1, weight_decay=0.5, weight_decay_mask=mask)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zeros, tx.init(params), params)
        np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
        assert not updates["bias"].any()
