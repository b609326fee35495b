"""The laws of every sampling, and that host and device draw the same sets.

To put a new sampling under them, add one line to `SAMPLINGS`.
"""

import collections
import functools
import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax import samplings
from dropmuon_optax.samplings import (
    EpochShift,
    Full,
    Grown,
    Independent,
    LinearShift,
    Nice,
    OneOf,
    Periodic,
    Progressive,
    RoundRobin,
    Staged,
    StochasticDepth,
    active_layers,
    cyclic_sets,
    draws,
    host,
    present_layers,
)

B = 5
SAMPLINGS = [
    Full(),
    Progressive(),
    Progressive((0.1, 0.0, 0.25, 0.65, 0.0)),
    Progressive((0, 0, 0, 0, 1)),
    EpochShift(20),
    EpochShift(5000, alpha=-2),
    LinearShift(20),
    Independent((0.1, 0.5, 1.0, 0.0, 0.9)),
    Independent((0.5,) * B),
    Nice(1),
    Nice(3),
    Nice(B),
    OneOf(cyclic_sets(B, 2)),
    OneOf(cyclic_sets(B, B)),
    OneOf(
        ((True, False) * 2 + (True,), (False,) * B, (False, True) * 2 + (True,)),
        (0.25, 0.0, 0.75),
    ),
    OneOf(((False,) * B, (True,) * B), (0.3, 0.7)),
    RoundRobin(),
    Staged(((0, Full()), (3, RoundRobin()), (9, Progressive()))),
    Staged(((0, EpochShift(20)), (15, EpochShift(30, alpha=2)))),
    Grown(((0, (True, False, True, False, True)), (7, (True,) * B))),
    Grown(
        (
            (0, (False, False, False, False, True)),
            (3, (True,) * B),
            (9, (True, False) * 2 + (True,)),
        )
    ),
    StochasticDepth((1.0, 0.9, 0.5, 0.0, 1.0)),
    StochasticDepth((0.5,) * B),
    Periodic(1),
    Periodic(3),
]
SUFFIXES = [
    s for s in SAMPLINGS if isinstance(s, Progressive | EpochShift | LinearShift)
]
MAY_BE_EMPTY = [
    Independent((0.5,) * B),
    OneOf(((False,) * B, (True,) * B), (0.3, 0.7)),
    Periodic(3),
    StochasticDepth((0.5,) * B),
]

PROBABILITIES = "`probabilities` must be a sequence of numbers"
NUM_DRAWS = 4000
NUM_SIGMAS = 5  # of a binomial: exceeded once in a million draws

every_sampling = pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)


@functools.cache
def sampler(sampling):
    """Compiled once: (keys, count) -> sets."""
    sample = lambda key, count: sampling.sample(B, count, key=key)  # noqa: E731
    return jax.jit(jax.vmap(sample, in_axes=(0, None)))


def draw(sampling, count):
    """Sets drawn at one step under many keys, as bools (draws, b)."""
    keys = jax.random.split(jax.random.key(7), NUM_DRAWS)
    return np.asarray(sampler(sampling)(keys, jnp.int32(count)))


def test_each_stage_begins_at_its_step():
    first, last = EpochShift(20), Progressive()
    staged = Staged(((0, first), (7, Full()), (12, last)))
    for stage, steps in ((first, range(7)), (Full(), range(7, 12)), (last, (12, 99))):
        for step in steps:
            expected = stage.marginals(B, step)
            np.testing.assert_array_equal(staged.marginals(B, step), expected)
    with pytest.raises(ValueError, match="one probability for each of 5"):
        Staged(((0, Full()), (1, Progressive((0.5, 0.5))))).check(B)


@every_sampling
@pytest.mark.parametrize("count", [0, 7, 10**6])
def test_frequencies_are_the_marginals(sampling, count):
    drawn, p = draw(sampling, count), sampling.marginals(B, count)
    assert (p.shape, p.dtype) == ((B,), np.float64)
    spread = np.sqrt(p * (1 - p) / NUM_DRAWS)
    assert (abs(drawn.mean(axis=0) - p) <= NUM_SIGMAS * spread).all()


@every_sampling
def test_marginals_of_a_traced_count(sampling):
    traced = jax.jit(lambda count: sampling.marginals(B, count))
    for count in (0, 3, 19, 10**6):
        exact = sampling.marginals(B, count)
        np.testing.assert_allclose(traced(jnp.int32(count)), exact, rtol=1e-6)


@every_sampling
@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
def test_host_and_device_draw_the_same(sampling, raw):
    key = jax.random.PRNGKey(3) if raw else jax.random.key(3)

    @jax.jit
    @jax.vmap
    def sample(count):
        return sampling.sample(B, count, key=jax.random.fold_in(key, count))

    steps = [*range(200), 1023, 1024, 5000, 10**6, 10**9, 2**31 - 1]
    drawn = sample(jnp.array(steps, jnp.int32)).tolist()
    for step, expected in zip(steps, drawn, strict=True):
        found = active_layers(sampling, B, key, step)
        assert found == tuple(expected)
        assert all(type(entry) is bool for entry in found)


@every_sampling
def test_a_set_depends_on_sampling_key_and_step_alone(sampling):
    key = jax.random.key(5)
    there = [active_layers(sampling, B, key, step) for step in range(3000)]
    host._sets_of_block.cache_clear()
    host._known_keys.clear()
    again = np.array(jax.random.key_data(key))
    for step in (2999, 0, 1024, 1023):
        assert active_layers(sampling, B, again, step) == there[step]


@every_sampling
def test_empty_sets_are_announced(sampling):
    drawn = np.concatenate([draw(sampling, count) for count in (0, 7, 10**6)])
    assert sampling.can_be_empty(B) == (sampling in MAY_BE_EMPTY)
    assert (~drawn.any(axis=1)).any() == (sampling in MAY_BE_EMPTY)


@every_sampling
def test_layers_of_probability_1_always_move(sampling):
    drawn, p = draw(sampling, 3), sampling.marginals(B, 3)
    assert drawn[:, p == 1].all()
    assert not drawn[:, p == 0].any()


@every_sampling
def test_layers_that_always_move_are_known(sampling):
    p = np.array([sampling.marginals(B, count) for count in (0, 1, 2, 3, 4, 30, 6000)])
    assert sampling.always(B) == tuple((p == 1).all(axis=0).tolist())


@pytest.mark.parametrize("sampling", SUFFIXES, ids=repr)
def test_cutoffs_make_suffixes(sampling):
    drawn = np.concatenate([draw(sampling, count) for count in (0, 7, 10**6)])
    assert (np.diff(drawn.astype(int), axis=1) >= 0).all()
    assert drawn[:, -1].all()


@every_sampling
def test_hashable_comparable_printable(sampling):
    assert sampling == eval(repr(sampling), vars(samplings))
    assert hash(sampling) == hash(eval(repr(sampling), vars(samplings)))


def test_uniform_cutoffs_are_uniform():
    cutoffs = B - draw(Progressive(), 0).sum(axis=1)
    counts = np.bincount(cutoffs, minlength=B) / NUM_DRAWS
    spread = math.sqrt(0.2 * 0.8 / NUM_DRAWS)
    assert (abs(counts - 0.2) <= NUM_SIGMAS * spread).all()


def test_independent_layers_are_independent():
    p = np.array([0.1, 0.5, 0.7, 0.3, 0.9])
    drawn = draw(Independent(p), 0)
    for i, j in itertools.combinations(range(B), 2):
        both, expected = (drawn[:, i] & drawn[:, j]).mean(), p[i] * p[j]
        spread = math.sqrt(expected * (1 - expected) / NUM_DRAWS)
        assert abs(both - expected) <= NUM_SIGMAS * spread


@pytest.mark.parametrize("tau", [1, 2, 4])
def test_nice_sets_have_tau_layers_and_all_are_as_likely(tau):
    drawn = draw(Nice(tau), 0)
    assert (drawn.sum(axis=1) == tau).all()
    expected = 1 / math.comb(B, tau)
    spread = math.sqrt(expected * (1 - expected) / NUM_DRAWS)
    for chosen in itertools.combinations(range(B), tau):
        found = drawn[:, list(chosen)].all(axis=1).mean()
        assert abs(found - expected) <= NUM_SIGMAS * spread


def test_one_of_draws_the_given_sets_with_their_probabilities():
    sets = ((True, False) * 2 + (True,), (True,) * B, (False, False, True, True, False))
    p = (0.5, 0.2, 0.3)
    found = collections.Counter(map(tuple, draw(OneOf(sets, p), 0).tolist()))
    assert set(found) == set(sets)
    for chosen, expected in zip(sets, p, strict=True):
        spread = math.sqrt(expected * (1 - expected) / NUM_DRAWS)
        assert abs(found[chosen] / NUM_DRAWS - expected) <= NUM_SIGMAS * spread


@pytest.mark.parametrize("num_layers", [1, 3, 12])
def test_cyclic_sets_move_each_layer_as_nice_does(num_layers):
    for tau in range(1, num_layers + 1):
        sets = cyclic_sets(num_layers, tau)
        assert len(set(sets)) == len(sets) <= num_layers
        assert {sum(chosen) for chosen in sets} == {tau}
        found = OneOf(sets).marginals(num_layers, 0)
        np.testing.assert_array_equal(found, Nice(tau).marginals(num_layers, 0))


def test_round_robin_takes_turns():
    turns = [active_layers(RoundRobin(), 3, jax.random.key(0), k) for k in range(4)]
    assert turns == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, False, False),
    ]


@pytest.mark.parametrize("num_steps", [1, 20, 1024, 1025, 10**7])
def test_epoch_shift_follows_its_formula(num_steps):
    alpha, i = 0.5, np.arange(B)
    for q in (0, 0.25, 0.5, 0.9, 1):
        step = round(q * num_steps)
        weights = np.exp(alpha * ((1 - q) * (B - 1 - i) + q * i))
        expected = np.cumsum(weights) / weights.sum()
        # q moves in 1024 stages, by which no exponent changes more than α(b − 1)/1024;
        # and a step is a whole number.
        found = EpochShift(num_steps, alpha).marginals(B, step)
        slack = 2 * alpha * (B - 1) * (1 / 1024 + abs(step / num_steps - q)) + 1e-12
        np.testing.assert_allclose(found, expected, rtol=slack)


def test_linear_shift_follows_its_formula():
    i = np.arange(B)
    for step in (0, 5, 10, 20, 21):
        q = min(step / 20, 1)
        weights = (1 - q) * (B - i) + q * (i + 1)
        expected = np.cumsum(weights) / weights.sum()
        np.testing.assert_allclose(LinearShift(20).marginals(B, step), expected)


def test_steep_weights_do_not_overflow():
    p = EpochShift(10, alpha=50.0).marginals(400, 0)
    assert np.isfinite(p).all()
    assert p[0] > 0.99


def test_draws_are_pinned():
    # A run that resumes under another version must draw the sets it would have drawn.
    key = jax.random.key(0)
    cutoffs = [B - sum(active_layers(Progressive(), B, key, k)) for k in range(12)]
    assert cutoffs == [4, 0, 3, 3, 3, 3, 3, 1, 4, 0, 0, 3]


def test_fold_in_is_that_of_jax():
    key = jax.random.key(123)
    steps = np.array([0, 1, 77, 2**31 - 1], np.uint32)
    words = host.host_words(draws.host_key(key), steps, 3)
    for step, row in zip(steps, words, strict=True):
        of_step = jax.random.fold_in(key, step)
        expected = [
            int(jax.random.key_data(jax.random.fold_in(of_step, j))[0])
            for j in range(3)
        ]
        assert row.tolist() == expected


def test_the_host_draws_without_a_call_to_jax(monkeypatch):
    key = jax.random.key(11)
    active_layers(Nice(2), B, key, 0)  # fetches the key
    monkeypatch.setattr(draws, "jax", None)
    monkeypatch.setattr(host, "host_key", None)
    for step in (1, 5000, 10**6):
        assert sum(active_layers(Nice(2), B, key, step)) == 2
        assert active_layers(Progressive(), B, key, step)[-1]


def test_keys_are_remembered_by_identity_and_bounded():
    host._known_keys.clear()
    for seed in range(host._MAX_KNOWN_KEYS + 10):
        key = jax.random.key(seed)
        expected = tuple(Nice(2).sample(B, 4, key=jax.random.fold_in(key, 4)).tolist())
        if seed % 20 == 0:
            assert active_layers(Nice(2), B, key, 4) == expected
        active_layers(Nice(2), B, key, 4)
    assert len(host._known_keys) == host._MAX_KNOWN_KEYS


@pytest.mark.parametrize(
    "key",
    [
        jax.random.key(0, impl="rbg"),
        jax.random.split(jax.random.key(0)),
        np.zeros(4, np.uint32),
        np.zeros(2, np.int32),
        0,
        None,
    ],
    ids=["rbg", "two keys", "four words", "int32", "seed", "none"],
)
def test_other_keys_are_refused(key):
    with pytest.raises(ValueError, match="`key` must be one Threefry key"):
        active_layers(Progressive(), B, key, 0)
    with pytest.raises(ValueError, match="`key` must be one Threefry key"):
        Progressive().sample(B, 0, key=key)


@pytest.mark.parametrize("step", [-1, 2**31, 0.5, True])
def test_other_steps_are_refused(step):
    with pytest.raises(ValueError, match="`step` must be a whole number"):
        inspect.unwrap(active_layers)(Progressive(), B, jax.random.key(0), step)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Progressive((0.5, 0.4)), "`probabilities` must sum to 1"),
        (lambda: Progressive((0.5, 0.5001)), "`probabilities` must sum to 1"),
        (
            lambda: Progressive((1.5, -0.5)),
            "`probabilities` must be a sequence of numbers",
        ),
        (lambda: Progressive(()), PROBABILITIES),
        (
            lambda: Progressive((math.nan, 1.0)),
            "`probabilities` must be a sequence of numbers",
        ),
        (
            lambda: Independent((0.5, -0.1)),
            "`probabilities` must be a sequence of numbers",
        ),
        (lambda: Independent((1.1,)), PROBABILITIES),
        (lambda: Nice(0), "`tau` must be a whole number"),
        (lambda: OneOf(()), "`sets` must be tuples of bools"),
        (lambda: OneOf(((),)), "`sets` must be tuples of bools"),
        (lambda: OneOf(((0, 1),)), "`sets` must be tuples of bools"),
        (lambda: OneOf(((True,), (True, False))), "all of one length"),
        (lambda: OneOf(((True,),), (0.5, 0.5)), "one for each of the 1 sets"),
        (lambda: OneOf(((True,), (True,)), (0.5, 0.4)), "of sum 1 within"),
        (lambda: OneOf(((True,),), (2.0,)), PROBABILITIES),
        (lambda: cyclic_sets(3, 4), "at most the 3 layers there are, got 4"),
        (lambda: cyclic_sets(3, 0), "`tau` must be a whole number"),
        (lambda: Staged(((0, OneOf(((True,),))),)), "nested, got OneOf"),
        (lambda: EpochShift(0), "`num_steps` must be a whole number"),
        (lambda: Staged(()), "the first step of the first one 0"),
        (lambda: Staged(((1, Full()),)), "the first step of the first one 0"),
        (lambda: Staged(((0, Full()), (3, Full()), (2, Full()))), "in order"),
        (lambda: Staged(((0, Nice(1)),)), "nested, got Nice"),
        (lambda: EpochShift(10, math.inf), "`alpha` must be in"),
        (lambda: EpochShift(10, -math.inf), "`alpha` must be in"),
        (lambda: LinearShift(-1), "`num_steps` must be a whole number"),
        (lambda: samplings.Periodic(0), "`period` must be a whole number of at least"),
        (lambda: Grown(()), "the first step of the first one 0"),
        (lambda: Grown(((2, (True,)),)), "the first step of the first one 0"),
        (lambda: Grown(((0, (True,)), (0, (True,)))), "whole number of at least 1"),
        (lambda: Grown(((0, (True,)), (4, (True,)), (2, (True,)))), "in order"),
        (lambda: Grown(((0, (0, 1)),)), "b bools of which one is True"),
        (lambda: Grown(((0, (False, False)),)), "b bools of which one is True"),
        (lambda: Staged(((0, Grown(((0, (True,)),))),)), "that run all layers"),
        (
            lambda: StochasticDepth((1.1,)),
            "`probabilities` must be a sequence of numbers",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "sampling",
    [
        Progressive((0.5, 0.5)),
        Independent((0.5, 0.5)),
        Nice(4),
        OneOf(((True, True),)),
        Grown(((0, (True, True)),)),
        StochasticDepth((0.5, 0.5)),
    ],
    ids=repr,
)
def test_samplings_of_another_number_of_layers_are_refused(sampling):
    key = jax.random.key(0)
    for use in (
        lambda: sampling.sample(3, 0, key=key),
        lambda: sampling.marginals(3, 0),
        lambda: sampling.always(3),
        lambda: sampling.can_be_empty(3),
        lambda: active_layers(sampling, 3, key, 0),
    ):
        with pytest.raises(ValueError, match=r"3 layers"):
            use()
    with pytest.raises(ValueError, match="`num_layers` must be a whole number"):
        sampling.marginals(0, 0)


def test_probabilities_off_by_rounding_are_divided_by_their_sum():
    p = Progressive((0.1, 0.2, 0.7 + 1e-7)).marginals(3, 0)
    np.testing.assert_allclose(p, [0.1, 0.3, 1.0], atol=1e-7)
    assert p[-1] == 1


def test_a_grown_network_has_the_layers_of_its_stage():
    few, most, all_ = (True, False, True), (True, True, False), (True,) * 3
    sampling = Grown(((0, few), (4, most), (9, all_)))
    for step in range(12):
        expected = few if step < 4 else most if step < 9 else all_
        assert active_layers(sampling, 3, jax.random.key(0), step) == expected
        assert present_layers(sampling, 3, jax.random.key(0), step) == expected


def test_a_period_has_all_layers_and_then_none():
    found = [active_layers(Periodic(3), 2, jax.random.key(0), k) for k in range(7)]
    all_, none = (True, True), (False, False)
    assert found == [all_, none, none, all_, none, none, all_]


@every_sampling
def test_what_moves_is_present(sampling):
    key = jax.random.key(3)
    for step in range(12):
        active = active_layers(sampling, B, key, step)
        present = present_layers(sampling, B, key, step)
        assert present == (active if sampling.absent else (True,) * B)


class Own(samplings.Sampling):
    """One of a user's own, whose table is given."""

    def __init__(self, rows):
        self.rows = rows

    def table(self, num_layers):
        return np.array(self.rows)

    def __repr__(self):
        return "Own()"


def test_a_sampling_of_ones_own(key):
    own = Own([[0.25, 0.5, 1.0]])
    assert own.always(3) == (False, False, True)
    np.testing.assert_array_equal(own.marginals(3, 7), [0.25, 0.5, 1.0])
    draws = np.array([own.sample(3, 0, key=k) for k in jax.random.split(key, 200)])
    np.testing.assert_allclose(draws.mean(0), [0.25, 0.5, 1.0], atol=0.12)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0.25, 0.5, 1.0], r"`table` of Own\(\) must have shape \(rows, 3\), got \(3,"),
        ([[[0.25, 0.5, 1.0]]], r"must have shape \(rows, 3\), got \(1, 1, 3\)"),
        ([[0.5, 1.0]], r"must have shape \(rows, 3\), got \(1, 2\)"),
        (np.zeros((0, 3)), r"must have shape \(rows, 3\), got \(0, 3\)"),
        ([[0.5, 1.5, 1.0]], r"`table` of Own\(\) must hold probabilities in \[0, 1\]"),
        ([[0.5, np.nan, 1.0]], r"must hold probabilities"),
    ],
)
def test_what_is_no_table_is_refused(rows, message, key):
    own = Own(rows)
    for use in (
        lambda: own.sample(3, 0, key=key),
        lambda: own.marginals(3, 0),
        lambda: own.always(3),
        lambda: own.can_be_empty(3),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_row_beyond_the_table_is_refused(key):
    class Counting(Own):
        def row(self, num_layers, count):
            return count

    own = Counting([[0.5, 1.0], [1.0, 1.0]])
    assert own.marginals(2, 1).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"`row` of Own\(\) must be one of the 2 rows"):
        own.marginals(2, 2)
    with pytest.raises(ValueError, match="must be one of the 2 rows"):
        active_layers(own, 2, key, 0)  # of a block of steps


def test_what_remains_of_stages_is_the_one_in_force_and_the_later_ones():
    last, middle = Progressive((0.0, 0.0, 1.0)), Progressive((0.0, 0.5, 0.5))
    stages = Staged(((0, Full()), (4, middle), (9, last)))
    assert [stages.settled(3, k) for k in (0, 3, 4, 8, 9, 100)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("off", [3e-6, -3e-6])
def test_probabilities_sum_to_one_within_a_millionth(off):
    with pytest.raises(ValueError, match=r"must sum to 1 within 1e-06"):
        Progressive((0.5, 0.5 + off))
    assert Progressive((0.5, 0.5 + off / 10)).marginals(2, 0)[1] == 1


@pytest.mark.parametrize("num_steps", [1025, 1031, 5003])
def test_epoch_shift_ends_where_it_ends_if_stages_do_not_divide_its_steps(num_steps):
    end = EpochShift(20).marginals(B, 20)
    sampling = EpochShift(num_steps)
    for step in (num_steps + 10, 10 * num_steps):
        np.testing.assert_allclose(sampling.marginals(B, step), end, rtol=1e-12)
