"""Four processes find the same numbers, go on exactly, and end when one is ended."""

import json

import jax
import pytest

import dropmuon_optax as dm
from benchmarks.common import workers
from benchmarks.trust import hosts
from benchmarks.trust.hosts_worker import OPTIMIZERS, SAMPLING

NUM_STEPS = 200


@pytest.mark.timeout(900)  # four processes compile six programs each
def test_four_processes(tmp_path):
    more = ["--steps", str(NUM_STEPS), "--again", "--end", "SIGTERM"]
    with pytest.raises(workers.WorkerError, match="worker 2 died of SIGTERM"):
        hosts.launch(tmp_path, *more)
    for name in OPTIMIZERS:
        turns = [hosts.lines_of(tmp_path, name, t, 4) for t in ("first", "again")]
        found = hosts.compare(*turns)
        assert found == {hosts.EQUAL: NUM_STEPS, "restarts equal to the bit": 4}
        lines = [json.loads(line) for line in turns[0][0]]
        assert len({line["digest"] for line in lines}) == NUM_STEPS  # all moved
        keys = {"drop": jax.random.key(7), "sampled": jax.random.key(7)}
        for line in lines if name in keys else ():
            expected = dm.active_layers(SAMPLING, 3, keys[name], line["step"])
            assert line["set"] == list(expected)


def test_what_differs_is_counted():
    first = [["a", "b"], ["a", "c"]]
    assert hosts.compare(first, [["b"], ["x"]]) == {
        hosts.EQUAL: 1,
        hosts.OTHER: 2,
        "restarts equal to the bit": 1,
    }
