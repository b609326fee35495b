"""The training loop: what it computes, what its clock counts, what it compiles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks.common import data, timing, train
from benchmarks.models import cnn

SCHEDULE = train.Schedule(batch_size=8, num_epochs=3, seed=0, num_evaluations=4)


@pytest.fixture(scope="module")
def dataset():
    return data.head(data.load("digits"), 40)


def linear(params, images):
    """Logits of a linear classifier, small enough to check by hand."""
    return images.reshape(images.shape[0], -1) @ params["w"]


def zeros():
    return {"w": jnp.zeros((64, 10))}


def run(dataset, step, optimizer, **options):
    params = zeros()
    return train.train(
        step,
        train.build_accuracy(linear),
        params,
        optimizer.init(params),
        dataset,
        SCHEDULE,
        **options,
    )


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def test_training_equals_a_plain_numpy_loop(dataset):
    optimizer = optax.sgd(0.1)
    result = run(dataset, train.build_train_step(linear, optimizer), optimizer)
    w = np.zeros((64, 10))
    images = dataset.train_images.reshape(40, 64).astype(np.float64)
    losses = []
    for epoch in range(3):
        order = np.random.default_rng([0, epoch]).permutation(40).reshape(5, 8)
        for chosen in order:
            x, y = images[chosen], dataset.train_labels[chosen]
            p = softmax(x @ w)
            losses.append(-np.log(p[np.arange(8), y]).mean())
            w -= 0.1 * x.T @ (p - np.eye(10)[y]) / 8
    accuracy = np.mean((images @ w).argmax(1) == dataset.train_labels)
    assert [point.step for point in result.history] == [0, 4, 8, 11, 15]
    assert result.history[-1].train_accuracy == pytest.approx(accuracy)
    # float32 against float64 over 15 steps
    assert result.history[-1].loss == pytest.approx(np.mean(losses[11:]), rel=1e-4)
    assert result.history[1].loss == pytest.approx(np.mean(losses[:4]), rel=1e-4)
    assert result.history[-1].epoch == 3.0


def test_the_callers_arrays_are_not_donated(dataset):
    optimizer = optax.sgd(0.1, momentum=0.9)
    params = zeros()
    state = optimizer.init(params)
    step = train.build_train_step(linear, optimizer)
    accuracy = train.build_accuracy(linear)
    train.train(step, accuracy, params, state, dataset, SCHEDULE)
    assert (params["w"] == 0).all()
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(state))


class Clock:
    """Counts one second a train step, a thousand for everything else."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(train, "perf_counter", lambda: self.now)

    def slow(self, function, seconds):
        def call(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        return call


def test_the_clock_counts_steps_alone(dataset, monkeypatch):
    clock = Clock(monkeypatch)
    compiled = timing.compile_program

    def compile_slowly(*args, **kwargs):
        clock.now += 1000.0
        program = compiled(*args, **kwargs)
        return program._replace(call=clock.slow(program.call, 1.0))

    monkeypatch.setattr(timing, "compile_program", compile_slowly)
    monkeypatch.setattr(train, "evaluate", clock.slow(train.evaluate, 1000.0))
    optimizer = optax.sgd(0.1)
    result = run(dataset, train.build_train_step(linear, optimizer), optimizer)
    assert [point.train_time_s for point in result.history] == [0, 4, 8, 11, 15]
    assert result.step_time_s == timing.Quartiles(1.0, 1.0, 1.0, num_runs=4)


def test_one_program_for_each_active_set(dataset, monkeypatch):
    """A step whose layers are chosen by a static argument, as dropping needs it."""
    compiled, ran = [], []
    compile_program = timing.compile_program

    def count(*args, active):
        compiled.append(active)
        program = compile_program(*args, active=active)

        def call(*args):
            ran.append(active)
            return program.call(*args)

        return program._replace(call=call)

    monkeypatch.setattr(timing, "compile_program", count)

    @partial(jax.jit, donate_argnums=(0, 1), static_argnames="active")
    def step(params, opt_state, images, labels, active):
        loss = train.cross_entropy(linear, params, images, labels)
        return {"w": params["w"] + float(active[0])}, opt_state, loss

    def active_at(number):
        return (number % 3 == 0, True)

    result = run(dataset, step, optax.sgd(0.1), active_at=active_at)
    assert result.num_programs == 2
    assert compiled == [(True, True), (False, True)]
    # each program's warm-up comes before the first stretch, of steps 0 to 3
    assert ran == [*compiled, *map(active_at, range(15))]


def test_accuracy_counts_every_image_once(monkeypatch):
    monkeypatch.setattr(train, "EVALUATION_BATCH", 3)
    accuracy = train.build_accuracy(lambda params, images: images * params)
    images = np.eye(10, dtype=np.float32)[:7]
    labels = np.array([0, 1, 2, 3, 4, 0, 0], np.int32)  # the last two are wrong
    assert accuracy(jnp.float32(1.0), images, labels) == pytest.approx(5 / 7)


def test_a_loss_that_is_not_finite_is_said_to_be_absent(dataset):
    optimizer = optax.sgd(float("inf"))
    result = run(dataset, train.build_train_step(linear, optimizer), optimizer)
    assert result.history[-1].loss is None


def test_the_target_is_reached_at_the_first_evaluation_that_has_it(dataset):
    optimizer = optax.sgd(0.1)
    result = run(dataset, train.build_train_step(linear, optimizer), optimizer)
    accuracies = [0.1, 0.5, 0.8, 0.7, 0.8]
    history = [
        point._replace(train_time_s=float(i), validation_accuracy=accuracy)
        for i, (point, accuracy) in enumerate(
            zip(result.history, accuracies, strict=True)
        )
    ]
    measured = train.measurements(result._replace(history=history), 0.8)
    assert measured["time_to_target_s"] == 2.0
    assert measured["num_steps_to_target"] == 8
    assert measured["final_validation_accuracy"] == 0.8
    missed = train.measurements(result._replace(history=history), 0.81)
    assert missed["time_to_target_s"] is None
    assert missed["num_steps_to_target"] is None


@pytest.mark.parametrize(("last", "count"), [(10, 3), (5, 20), (1, 1), (660, 20)])
def test_stretches_cover_every_step_once(last, count):
    covered = [
        step
        for start, stop in train.stretches(last, count)
        for step in range(start, stop)
    ]
    assert covered == list(range(last))
    assert len(list(train.stretches(last, count))) == min(last, count)


def test_the_learning_rate_decays_linearly_to_zero(dataset):
    schedule = train.linear_decay(dataset, SCHEDULE, 0.3)
    # 15 steps; float32
    np.testing.assert_allclose(schedule(0), 0.3, rtol=1e-6)
    np.testing.assert_allclose(schedule(5), 0.2, rtol=1e-6)
    assert schedule(15) == 0.0


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("preset", cnn.PRESETS)
def test_the_network_on_every_image_size(shape, preset):
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)

    def build_and_apply(images):
        apply, params = cnn.build(shape, preset, seed=0)
        return params, apply(params, images)

    params, logits = jax.eval_shape(build_and_apply, images)
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    first, second, third = cnn.PRESETS[preset]
    assert paths == {
        "conv1/kernel": (3, 3, shape[2], first),
        "conv1/bias": (first,),
        "conv2/kernel": (3, 3, first, second),
        "conv2/bias": (second,),
        "conv3/kernel": (3, 3, second, third),
        "conv3/bias": (third,),
        "head/kernel": (shape[0] // 4 * (shape[1] // 4) * third, 10),
        "head/bias": (10,),
    }
    assert logits.shape == (2, 10)


def test_max_pool_equals_the_windowed_one():
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    np.testing.assert_array_equal(
        cnn.max_pool(x), nnx.max_pool(x, (2, 2), strides=(2, 2))
    )


def test_an_image_must_halve_twice():
    with pytest.raises(ValueError, match=r"divisible by 4, got \(30, 28, 1\)"):
        cnn.CNN((30, 28, 1), rngs=nnx.Rngs(0))
