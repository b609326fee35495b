"""The clock: it stops only when the work is done, and pairs stay pairs."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.common import timing


class Device:
    """A fake clock, and work that takes time only when it is waited for."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.order = []
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now)

    def launch(self, name, *costs):
        """A call that returns at once; the n-th takes `costs[n]` (the last repeats)."""
        left = list(costs)

        def call():
            self.order.append(name)
            return Pending(self, left.pop(0) if len(left) > 1 else left[0])

        return call


class Pending:
    """What an asynchronous call returns: an array that is not there yet."""

    def __init__(self, device, cost):
        self.device, self.cost = device, cost

    def block_until_ready(self):
        self.device.now += self.cost
        return self


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


def test_time_includes_the_work_and_not_only_its_dispatch(device):
    measured = timing.time_call(device.launch("a", 2.0), num_runs=5)
    assert measured == timing.Quartiles(2.0, 2.0, 2.0, num_runs=5)


def test_warm_up_is_not_counted(device):
    call = device.launch("a", 100.0, 100.0, 1.0)
    assert timing.time_call(call, num_runs=3, num_warmup=2).median == 1.0
    assert len(device.order) == 5


def test_pairs_are_interleaved_and_divided_inside_each_round(device):
    calls = {  # the machine slows down, for both: the ratio does not
        "a": device.launch("a", 1.0, 2.0, 4.0),
        "b": device.launch("b", 3.0, 6.0, 12.0),
    }
    times, ratios = timing.time_paired(calls, num_runs=3, num_warmup=0)
    assert device.order == ["a", "b"] * 3
    assert times["a"].median == 2.0
    assert ratios["b"] == timing.Quartiles(3.0, 3.0, 3.0, num_runs=3)


def test_there_must_be_a_run(device):
    with pytest.raises(ValueError, match="`num_runs` must be at least 1, got 0"):
        timing.time_call(device.launch("a", 1.0), num_runs=0)


def test_a_program_is_compiled_apart_from_its_run():
    @jax.jit
    def product(x, y):
        return x @ y

    x, y = jnp.ones((16, 32)), jnp.ones((32, 8))
    program = timing.compile_program(product, x, y)
    assert program.compile_time_s > 0
    assert program.num_flops == 2 * 16 * 32 * 8
    inputs_and_output = 4 * (16 * 32 + 32 * 8 + 16 * 8)
    assert program.peak_memory_bytes >= inputs_and_output
    assert (program.call(x, y) == 32).all()


def test_static_arguments_are_compiled_in():
    double = jax.jit(
        lambda x, active: x + x if active[0] else x, static_argnames="active"
    )
    program = timing.compile_program(double, jnp.ones(3), active=(True,))
    assert (program.call(jnp.ones(3)) == 2).all()


def test_a_donating_step_can_be_repeated():
    step = jax.jit(lambda w, x: (w + x, w.sum()), donate_argnums=0)
    start = jnp.zeros(4)
    call = timing.repeat_step(step, start, batch=(jnp.ones(4),))
    losses = [float(call()[1]) for _ in range(3)]
    assert losses == [0.0, 4.0, 8.0]
    assert (start == 0).all()  # the caller's array was not donated


def test_copies_keep_typed_keys():
    tree = {"key": jax.random.key(3), "w": jnp.arange(2)}
    copy = timing.copied(tree)
    assert jax.random.key_data(copy["key"]).tolist() == [0, 3]
    assert copy["w"].tolist() == [0, 1]
