"""States, transformations and nouns that are copied or pickled are what they were."""

import copy
import pickle
from typing import Any

import jax
import pytest
from cases import Case, assert_equal, every_case, run

import dropmuon_optax as dm
from dropmuon_optax import compressors, norms, samplings

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


@pytest.mark.parametrize("how", COPIES)
@every_case
def test_a_run_goes_on_from_a_copied_state(case: Case, how: str):
    loop = run(case.name, "float32")
    state = COPIES[how](loop.states[1])
    assert_equal(state, loop.states[1])
    params = COPIES[how](loop.params[1])
    updates, after = loop.update(loop.grads[1], state, params)
    assert_equal((updates, after), (loop.updates[1], loop.states[2]))


@pytest.mark.parametrize("how", ["copy", "deepcopy"])
@every_case
def test_a_copied_transformation_is_the_same(case: Case, how: str):
    """None can be pickled, as none of Optax can: they are functions made on the way."""
    loop = run(case.name, "float32")
    tx = COPIES[how](loop.tx)
    assert type(tx) is type(loop.tx)
    state = tx.init(loop.params[0])
    assert_equal(state, loop.states[0])
    shapes = jax.eval_shape(tx.update, loop.grads[0], state, loop.params[0])
    expected = jax.eval_shape(lambda: (loop.updates[0], loop.states[1]))
    assert shapes == expected


NOUNS = [
    norms.Spectral(),
    norms.Scaled(norms.Spectral(num_steps=None), 2.0),
    norms.muon_spectral(),
    samplings.Progressive((0.5, 0.25, 0.25)),
    samplings.Nice(2),
    samplings.Grown(((0, (True, False)), (5, (True, True)))),
    compressors.Composed(compressors.TopK(0.1), compressors.Natural()),
    compressors.RankK(0.25, warm_start=True),
    dm.Layer(3, norms.MaxEntry(), 2.0),
    dm.Stacked(1, norms.Spectral(), 2.0),
    dm.AdaptiveRadius(0.1, 0.2),
]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("noun", NOUNS, ids=repr)
def test_a_copied_noun_is_equal(noun: Any, how: str):
    other = COPIES[how](noun)
    assert other == noun
    assert hash(other) == hash(noun)
    assert repr(other) == repr(noun)
