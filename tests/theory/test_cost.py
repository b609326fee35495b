"""The cost model, its measurement, and its optima against brute force."""

import inspect
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropmuon_optax.samplings import Progressive
from dropmuon_optax.theory import cost
from dropmuon_optax.theory.cost import StepCost, measure_costs, optimal_probabilities

GRID = 20  # probabilities in multiples of 1/20


def simplex(b):
    """All probabilities of b cutoffs on the grid."""
    for bars in itertools.combinations_with_replacement(range(GRID + 1), b - 1):
        edges = (0, *bars, GRID)
        yield np.diff(edges) / GRID


def num_steps(marginals, smoothness):
    """Up to 2Δ/ε, the steps until the unweighted sum of squares is at most ε."""
    with np.errstate(divide="ignore"):
        return np.max(smoothness / marginals)


def unweighted(p, costs, smoothness):
    marginals = np.cumsum(p)
    return costs.expected(marginals) * num_steps(marginals, smoothness)


def weighted(p, costs, smoothness):
    marginals = np.cumsum(p)
    return costs.expected(marginals) / np.sum(marginals / smoothness)


def problems():
    rng = np.random.default_rng(0)
    for b in (1, 2, 3, 4):
        for _ in range(5):
            # On the grid, so that the optimum is.
            smoothness = rng.integers(1, GRID + 1, b).astype(float)
            smoothness[rng.integers(b)] = GRID
            yield (
                StepCost(rng.uniform(0.1, 3), rng.uniform(0, 3, b).tolist()),
                smoothness,
            )


@pytest.mark.parametrize(
    ("criterion", "objective"), [("unweighted", unweighted), ("weighted", weighted)]
)
def test_no_probabilities_are_cheaper(criterion, objective):
    for costs, smoothness in problems():
        p = optimal_probabilities(costs, smoothness.tolist(), criterion)
        Progressive(p)  # they are probabilities
        best = min(objective(q, costs, smoothness) for q in simplex(len(smoothness)))
        found = objective(np.array(p), costs, smoothness)
        assert found <= best * (1 + 1e-12)
        assert found >= best * (1 - 1e-12)


@pytest.mark.parametrize("smoothness", [(3.0, 1.0, 2.0), (3.0, 3.0, 1.0), (2.0,)])
def test_full_steps_are_optimal_where_the_first_layer_is_roughest(smoothness):
    costs = StepCost(1.0, (1.0,) * len(smoothness))
    assert optimal_probabilities(costs, smoothness)[0] == 1


def test_full_steps_are_not_optimal_elsewhere():
    assert optimal_probabilities(StepCost(1.0, (1.0, 1.0)), (1.0, 2.0)) == (0.5, 0.5)


def test_expected_cost_is_the_mean_over_draws():
    costs, sampling = StepCost(1.5, (4.0, 2.0, 1.0)), Progressive((0.2, 0.3, 0.5))
    sets = [(True, True, True), (False, True, True), (False, False, True)]
    mean = sum(p * costs.of(s) for p, s in zip((0.2, 0.3, 0.5), sets, strict=True))
    assert costs.expected(sampling.marginals(3, 0)) == pytest.approx(mean, rel=1e-14)


@pytest.mark.parametrize("repeats", [1, 5])
def test_measured_costs_are_differences_of_medians(monkeypatch, repeats):
    # A clock that only the train step moves: cutoff s of 3 takes (3 − s)² seconds, but
    # ten times as much in its first run and once in a slow moment.
    now, calls = 0.0, []

    def train_step(x, active):
        nonlocal now
        calls.append(active)
        slow = 10 if len(calls) <= 3 or len(calls) == 8 else 1
        now += sum(active) ** 2 * slow
        assert not x.is_deleted()
        x.delete()  # as if donated
        return jnp.zeros(())

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    x = jnp.ones(3)
    found = measure_costs(train_step, x, num_layers=3, repeats=repeats)
    assert found == StepCost(1.0, (5.0, 3.0, 0.0))
    assert len(calls) == 3 * (1 + repeats)
    assert calls[:3] == [(True,) * 3, (False, True, True), (False, False, True)]
    assert not x.is_deleted()


def test_measuring_a_jitted_step_compiles_one_program_a_cutoff():
    num_traces = 0

    def train_step(x, active):
        nonlocal num_traces
        num_traces += 1
        return x * sum(active)

    step = jax.jit(train_step, static_argnames="active", donate_argnums=0)
    found = measure_costs(step, jnp.ones(3), num_layers=4, repeats=3)
    assert num_traces == len(found.per_layer) == 4
    assert found.fixed > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: optimal_probabilities(c, (1.0,)), "for each of 2 layers"),
        (lambda c: optimal_probabilities(c, (1.0, 0.0)), "`smoothness` must be in"),
        (lambda c: optimal_probabilities(c, (1.0, float("nan"))), "`smoothness` must"),
        (lambda c: c.expected((1.0,)), "for each of 2 layers"),
        (lambda c: StepCost(float("nan"), (1.0,)), "`fixed` must be in"),
        (lambda c: StepCost(1.0, ()), "`per_layer` must hold"),
        (lambda c: measure_costs(abs, num_layers=0), "`num_layers` must be"),
        (lambda c: measure_costs(abs, num_layers=1, repeats=0), "`repeats` must be"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(StepCost(1.0, (1.0, 1.0)))


def test_there_are_two_criteria():
    plain = inspect.unwrap(cost.optimal_probabilities)
    with pytest.raises(ValueError, match="`criterion` must be"):
        plain(StepCost(1.0, (1.0,)), (1.0,), "best")
