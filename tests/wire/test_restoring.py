"""A checkpoint of another layout of owners is refused, by both layouts' names."""

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import dropmuon_optax as dm
from dropmuon_optax.compressors import TopK

PARAMS = {"a": jnp.ones((12, 20)), "b": jnp.ones((12, 20)), "c": jnp.ones((8, 24))}


def make(num_workers, **changes):
    return dm.ef21_muon(
        0.1, dm.layers_by_path(None), TopK(0.2), num_workers=num_workers,
        key=jax.random.key(0), **changes,
    )  # fmt: skip


def restored(folder, saved, tx):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "run", saved)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "run", jax.eval_shape(tx.init, PARAMS))


def test_of_another_number_of_workers(tmp_path):
    with pytest.raises(ValueError, match=r"'2_owners_\w+'\) not found.*'4_owners_\w+'"):
        restored(tmp_path, make(4).init(PARAMS), make(2))


def test_of_stacks_that_were_padded_one_by_one(tmp_path):
    """Such a state had no layout: what is wanted is named, and what there is."""
    state = make(4).init(PARAMS)
    bare = {name: getattr(state.server, name) for name in ("G", "X", "inner", "memory")}
    with pytest.raises(ValueError, match=r"'4_owners_\w+'\) not found.*'server', 'G'"):
        restored(tmp_path, state._replace(server=bare), make(4))


def test_of_the_same_layout(tmp_path):
    state = make(4).init(PARAMS)
    again = restored(tmp_path, state, make(4))
    assert jax.tree.structure(again) == jax.tree.structure(state)
