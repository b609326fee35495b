"""Two threads with one transformation find the numbers that each finds alone."""

import concurrent.futures
import threading
from typing import Any

import jax
import pytest
from cases import Case, assert_equal, every_case, jit, random_tree, run

import dropmuon_optax as dm

NUM_THREADS = 2


def together(*functions: Any) -> list[Any]:
    """What they return, begun at once, each in a thread of its own."""
    barrier = threading.Barrier(len(functions))

    def begin(function: Any) -> Any:
        barrier.wait()
        return function()

    with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
        return [f.result() for f in [pool.submit(begin, f) for f in functions]]


@every_case
def test_threads_that_trace_and_train_while_another_makes_states(case: Case):
    loop, tx = run(case.name, "float32"), case.build()
    update = jit(tx.update)  # traced by both threads at once

    def train() -> Any:
        with case.promotion():  # a thread has its own
            state, updates = loop.states[0], []
            for g, params in zip(loop.grads, loop.params, strict=False):
                found, state = update(g, state, params)
                updates.append(found)
            return updates, state

    def make() -> Any:
        with case.promotion():
            return [tx.init(random_tree("float32", seed)) for seed in (0, 3, 0)]

    *trained, states = together(*[train] * NUM_THREADS, make)
    for updates, state in trained:
        assert_equal(updates, loop.updates)
        assert_equal(state, loop.states[-1])
    alone = tx.init(random_tree("float32", 3))
    assert_equal(states, [loop.states[0], alone, loop.states[0]])


@pytest.mark.parametrize("sampling", [dm.samplings.Progressive(), dm.samplings.Nice(2)])
def test_sets_that_two_threads_draw(sampling: Any):
    """On the host, where what was drawn is kept."""
    key = jax.random.key(11)

    def draw() -> Any:
        return [dm.active_layers(sampling, 5, key, k) for k in range(40)]

    first, second = together(draw, draw)
    assert first == second == draw()
    assert len(set(first)) > 2
