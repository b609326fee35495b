"""A number that is not finite shows in its own leaf, and in no other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import Case, every_case, jit, random_tree

import dropmuon_optax as dm
from dropmuon_optax.compressors import Natural, RankK, ScaledSign, TopK


def finite(x: Any) -> np.ndarray:
    return np.isfinite(np.asarray(x, np.float64))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@every_case
def test_its_own_leaf_says_so_and_the_others_move_as_ever(case: Case, value: float):
    tx, params, g = case.build(), random_tree("float32"), random_tree("float32", 1)
    bad = {**g, "wide": {"kernel": g["wide"]["kernel"].at[2, 3].set(value)}}
    update, state = jit(tx.update), tx.init(params)
    clean, _ = update(g, state, params)
    found, after = update(bad, state, params)
    again, _ = update(g, after, params)
    for updates in (found, again):
        of_wide = finite(updates["wide"]["kernel"])
        if case.make is dm.scale_by_momentum:
            assert of_wide.sum() == of_wide.size - 1
            assert not of_wide[2, 3]
        elif case.make is dm.scale_by_lmo and updates is again:
            assert of_wide.all()  # it remembers nothing
        else:
            assert not of_wide.any()
    for name in ("embed", "block_0", "conv", "head"):
        jax.tree.map(np.testing.assert_array_equal, found[name], clean[name])


@pytest.mark.parametrize("server", [None, ScaledSign()], ids=repr)
@pytest.mark.parametrize("worker", [Natural(), TopK(0.25), RankK(0.25)], ids=repr)
def test_memories_of_errors_keep_it_in_sight(worker: Any, server: Any):
    """What compresses it away must not hide it: later steps of the matrix say so."""
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
    tx = dm.ef21_muon(
        0.1,
        dm.layers_by_path(None, [("", dm.norms.Spectral(), 1.0)]),
        worker,
        server,
        num_workers=1,
        key=jax.random.key(0),
    )
    g = jax.tree.map(lambda x: 0.5 * x, params)
    bad = {**g, "a": g["a"].at[0, 0].set(jnp.nan)}
    update, state, w = jit(tx.update), tx.init(params), params
    for k in range(3):
        updates, state = update(bad if k == 0 else g, state, w)
        w = optax.apply_updates(w, updates)
        assert not finite(updates["a"]).any(), k
        assert not finite(state.G_j["a"]).all(), k
        assert finite(updates["b"]).all(), k
    guarded = optax.apply_if_finite(tx, 3)
    state = guarded.init(params)
    updates, state = jit(guarded.update)(bad, state, params)
    assert not np.any(updates["a"])
    updates, _ = jit(guarded.update)(g, state, params)
    assert finite(updates["a"]).all()
    assert np.any(updates["a"])
