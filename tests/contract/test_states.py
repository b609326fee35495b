"""A state, gradients and parameters that don't fit are refused by name."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import Case, every_case, random_tree

import dropmuon_optax as dm
from dropmuon_optax.compressors import Natural, RankK, ScaledSign, TopK

KEY = np.uint32([0, 7])
PARAMS = random_tree("float32")


def update(tx: Any, state: Any, g: Any = None, params: Any = None) -> Any:
    """Shapes are enough: nothing is to be computed before the error."""
    params = PARAMS if params is None else params
    return jax.eval_shape(tx.update, params if g is None else g, state, params)


def with_leaf(tree: Any, value: Any) -> Any:
    return {**tree, "wide": {"kernel": value}}


@every_case
def test_no_state(case: Case):
    with pytest.raises(ValueError, match="`state` must be what `init` returned"):
        update(case.build(), None)


@every_case
def test_no_gradient(case: Case):
    tx = case.build()
    with pytest.raises(ValueError, match=r"'wide/kernel' must be an array.*got None"):
        update(tx, tx.init(PARAMS), with_leaf(PARAMS, None))


@every_case
def test_gradients_that_would_be_broadcast(case: Case):
    tx = case.build()
    g = with_leaf(PARAMS, jnp.ones((1, 16)))
    with pytest.raises(ValueError, match=r"'wide/kernel' must have .*\(8, 16\), got"):
        update(tx, tx.init(PARAMS), g)


@every_case
def test_gradients_of_another_tree(case: Case):
    tx = case.build()
    more = {**PARAMS, "more": {"bias": jnp.ones(3)}}
    with pytest.raises(ValueError, match="'more/bias'"):
        update(tx, tx.init(PARAMS), more)
    less = {name: leaf for name, leaf in PARAMS.items() if name != "wide"}
    with pytest.raises(ValueError, match=r"'wide/kernel' must be an array"):
        update(tx, tx.init(PARAMS), less)


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
@every_case
def test_gradients_of_other_numbers(case: Case, dtype: str):
    tx = case.build()
    g = with_leaf(PARAMS, jnp.ones((8, 16), dtype))
    with pytest.raises(ValueError, match=rf"'wide/kernel' must be .*got {dtype}"):
        update(tx, tx.init(PARAMS), g)


@every_case
def test_the_state_of_another_width(case: Case):
    tx = case.build()
    if case.make is dm.scale_by_lmo:
        return  # it keeps nothing of a width
    other = tx.init(with_leaf(PARAMS, jnp.ones((8, 12))))
    with pytest.raises(ValueError, match="wide/kernel"):
        update(tx, other)


@every_case
def test_the_state_of_another_tree(case: Case):
    tx = case.build()
    if case.make is dm.scale_by_lmo:
        return
    less = {name: leaf for name, leaf in PARAMS.items() if name != "wide"}
    with pytest.raises(ValueError, match=r"wide/kernel|structure of the state"):
        update(tx, tx.init(less))


@every_case
def test_the_state_of_another_transformation(case: Case):
    with pytest.raises(ValueError, match="`state` must be what `init` returned"):
        update(case.build(), optax.adam(0.1).init(PARAMS))


def ef21(server: Any = None, worker: Any = None, **changes: Any) -> Any:
    return dm.ef21_muon(
        0.1,
        dm.layers_by_path(None),
        worker or Natural(),
        server,
        **{"num_workers": 1, "key": KEY, **changes},
    )


MISFITS = {
    "no momentum, some": (ef21(momentum=0.0), ef21(), r"momentum=0 .*momentum=0.9"),
    "momentum, none": (ef21(), ef21(momentum=0.0), r"with momentum .*momentum=0.0"),
    "no server, one": (
        ef21(),
        ef21(ScaledSign()),
        r"without a server's compressor .*ScaledSign\(\)",
    ),
    "server, none": (
        ef21(ScaledSign()),
        ef21(),
        r"with a server's compressor .*server_compressor=None",
    ),
    "no memory, some": (
        ef21(),
        ef21(worker=RankK(0.25, warm_start=True)),
        r"without 'memory",
    ),
    "memory, none": (
        ef21(worker=RankK(0.25, warm_start=True)),
        ef21(),
        r"with 'memory",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_the_state_of_other_options(name: str):
    made, used, message = MISFITS[name]
    update(used, used.init(PARAMS))
    with pytest.raises(ValueError, match=message):
        update(used, made.init(PARAMS))


def over_two(tx: Any, state: Any) -> Any:
    """A step of one of two workers."""
    one = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    step = jax.vmap(
        lambda g: tx.update(g, state, PARAMS), axis_name="data", axis_size=2
    )
    return jax.eval_shape(step, one)


def test_the_state_of_another_topology():
    made, used = ef21(num_workers=2), ef21(num_workers=2, topology="gather")
    for one, other in ((made, used), (used, made)):
        with pytest.raises(ValueError, match="another `topology`"):
            over_two(one, other.init(PARAMS))


def test_the_state_of_other_compressors_of_owners():
    made, used = ef21(num_workers=2), ef21(worker=TopK(0.5), num_workers=2)
    state = made.init(PARAMS)
    state = state._replace(
        G_j=jax.tree.map(lambda x: x[0], state.G_j),
        momentum=jax.tree.map(lambda x: x[0], state.momentum),
    )
    with pytest.raises(ValueError, match=r"compressors, of 'block_0/kernel'"):
        over_two(used, state)


def test_the_state_of_another_mask():
    decay = {"weight_decay": 0.5}
    made = ef21(num_workers=2, **decay)
    mask = jax.tree.map(lambda _: False, PARAMS)
    used = ef21(num_workers=2, weight_decay_mask=mask, **decay)
    state = made.init(PARAMS)
    state = state._replace(
        G_j=jax.tree.map(lambda x: x[0], state.G_j),
        momentum=jax.tree.map(lambda x: x[0], state.momentum),
    )
    with pytest.raises(ValueError, match="layers and compressors"):
        over_two(used, state)


def layered(params: Any) -> Any:
    tree = dm.layers_by_path(None)(params)
    flat, structure = jax.tree.flatten(tree)
    flat = [dataclasses.replace(layer, index=i) for i, layer in enumerate(flat)]
    return jax.tree.unflatten(structure, flat)


WRAPPERS = {
    "drop_layers": dm.drop_layers(
        optax.adam(0.1), layered, dm.samplings.Full(), key=KEY
    ),
    "track_smoothness": dm.track_smoothness(layered),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers(name: str):
    tx = WRAPPERS[name]
    state = tx.init(PARAMS)
    update(tx, state)
    with pytest.raises(ValueError, match="`state` must be what `init` returned"):
        update(tx, None)
    with pytest.raises(ValueError, match=r"'wide/kernel' must have .*got \(1, 16\)"):
        update(tx, state, with_leaf(PARAMS, jnp.ones((1, 16))))
    with pytest.raises(ValueError, match=r"'wide/kernel' must be .*got None"):
        update(tx, state, with_leaf(PARAMS, None))
    with pytest.raises(ValueError, match="wide/kernel"):
        update(tx, tx.init(with_leaf(PARAMS, jnp.ones((8, 12)))))


def test_without_parameters_the_state_tells():
    tx = dm.gluon(0.1)
    with pytest.raises(ValueError, match=r"wide/kernel.*\(8, 16\)|\(1, 16\).*wide"):
        tx.update(with_leaf(PARAMS, jnp.ones((1, 16))), tx.init(PARAMS))
