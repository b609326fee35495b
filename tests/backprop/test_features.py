"""Kept features of a prefix that will not move again."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dropmuon_optax as dm
from dropmuon_optax.samplings import EpochShift, Full, Grown, Progressive, Staged

KEY = jax.random.key(0)
LAYERS = dm.layers_by_path(order=[r"dense_(\d)"])
SIZES = (7, 16, 12, 5, 3)  # four layers
FROM_2 = (False, False, True, True)
SAMPLING = Staged(((0, Full()), (4, Progressive((0.0, 0.0, 1.0, 0.0)))))


def network(seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"dense_{i}": {
            "kernel": jnp.asarray(rng.standard_normal((m, n)) / m**0.5, "float32"),
            "bias": jnp.asarray(rng.standard_normal(n), "float32"),
        }
        for i, (m, n) in enumerate(itertools.pairwise(SIZES))
    }


def span(params, x, start=0, stop=4):
    for i in range(start, stop):
        layer = params[f"dense_{i}"]
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
    return x


def loss_fn(params, x, y, start=0):
    return jnp.mean((span(params, x, start) - y) ** 2)


PREFIX = functools.partial(span, stop=2)
X = np.random.default_rng(1).standard_normal((10, SIZES[0])).astype("float32")
Y = np.random.default_rng(2).standard_normal((10, SIZES[-1])).astype("float32")
cache = functools.partial(
    dm.cache_features, PREFIX, layers=LAYERS, sampling=SAMPLING, step=4, batch_size=4
)


def test_features_are_those_of_each_sample():
    params = network()
    expected = X.astype(np.float64)
    for i in range(2):
        layer = params[f"dense_{i}"]
        kernel, bias = (np.asarray(layer[k], np.float64) for k in ("kernel", "bias"))
        expected = np.tanh(expected @ kernel + bias)
    found = cache(params, X)  # 10 samples by batches of 4
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    half = cache(params, X, dtype=jnp.bfloat16)
    assert half.nbytes == found.nbytes // 2
    # Eight bits of mantissa.
    np.testing.assert_allclose(half.astype(np.float64), expected, rtol=2**-8)


def test_trees_of_inputs_and_features():
    def prefix(params, inputs):
        h = PREFIX(params, inputs["image"])
        return {"h": h, "weight": inputs["weight"]}

    inputs = {"image": X, "weight": np.arange(10.0, dtype=np.float32)}
    found = dm.cache_features(
        prefix, network(), inputs, layers=LAYERS, sampling=SAMPLING, step=4
    )
    np.testing.assert_array_equal(found["weight"], inputs["weight"])
    np.testing.assert_allclose(found["h"], cache(network(), X), rtol=1e-6)


def test_gradient_of_the_rest_is_that_of_the_whole():
    params = network()
    found = dm.value_and_grad(functools.partial(loss_fn, start=2), LAYERS)(
        params, cache(params, X), Y, active=FROM_2
    )
    expected = dm.value_and_grad(loss_fn, LAYERS)(params, X, Y, active=FROM_2)
    # Two compilations round sums of a dozen float32 products differently.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6),
        found,
        expected,
    )


@pytest.mark.usefixtures("standard_promotion")  # Optax's Adam
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_training_on_features_is_training_with_a_frozen_prefix(weight_decay):
    tx = dm.drop_layers(
        dm.muon(0.02, LAYERS, weight_decay=weight_decay), LAYERS, SAMPLING, key=KEY
    )
    whole, kept = network(), network()
    states = [tx.init(whole), tx.init(kept)]
    features, settled_at = None, None
    for step in range(8):
        active = dm.active_layers(SAMPLING, 4, KEY, step)
        start = SAMPLING.settled(4, step)
        if start and features is None:
            features, settled_at = cache(kept, X), kept
        for i, inputs in enumerate((X, X if features is None else features)):
            params, first = (whole, 0) if i == 0 else (kept, start)
            loss = functools.partial(loss_fn, start=first)
            _, grads = dm.value_and_grad(loss, LAYERS)(params, inputs, Y, active=active)
            updates, states[i] = tx.update(grads, states[i], params, active=active)
            params = optax.apply_updates(params, updates)
            whole, kept = (params, kept) if i == 0 else (whole, params)
    assert settled_at is not None
    for name in ("dense_0", "dense_1"):  # bit for bit: no step, no weight decay
        jax.tree.map(np.testing.assert_array_equal, kept[name], settled_at[name])
    assert np.any(kept["dense_2"]["kernel"] != settled_at["dense_2"]["kernel"])
    # Differences of rounding go through five steps of Newton–Schulz, four times.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), kept, whole
    )


def test_steps_on_features_cost_what_a_network_cut_by_hand_does():
    params = network()
    features, y = np.zeros((256, SIZES[2]), "f"), np.zeros((256, SIZES[-1]), "f")
    rest = {name: params[name] for name in ("dense_2", "dense_3")}
    ours = dm.value_and_grad(functools.partial(loss_fn, start=2), LAYERS)
    found = dm.count_flops(functools.partial(ours, active=FROM_2), params, features, y)
    cut = functools.partial(loss_fn, start=2)
    by_hand = dm.count_flops(jax.value_and_grad(cut), rest, features, y)
    assert found == pytest.approx(by_hand, rel=0.02)
    frozen = dm.count_flops(
        functools.partial(dm.value_and_grad(loss_fn, LAYERS), active=FROM_2),
        params, np.zeros((256, SIZES[0]), "f"), y,
    )  # fmt: skip
    assert found < 0.8 * frozen


class Module(nnx.Module):
    def __init__(self, rate=0.0, normalized=False):
        rngs = nnx.Rngs(0)
        self.dense_0 = nnx.Linear(7, 8, rngs=rngs)
        self.norm_0 = nnx.BatchNorm(8, rngs=rngs) if normalized else None
        self.dropout_0 = nnx.Dropout(rate, rngs=rngs)
        self.dense_1 = nnx.Linear(8, 2, rngs=rngs)

    def features(self, x):
        h = self.dense_0(x)
        h = h if self.norm_0 is None else self.norm_0(h)
        return self.dropout_0(h)

    def __call__(self, x):
        return self.dense_1(self.features(x))


OF_MODULE = {
    "layers": dm.layers_by_path(order=[r"_(\d)"]),
    "sampling": Progressive((0.0, 1.0)),
    "step": 0,
}


@pytest.mark.usefixtures("standard_promotion")  # Flax's random streams
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.5}, "draw no random numbers.*random_bits"),
        ({"normalized": True}, "not change the model, got a change of 'norm_0/mean'"),
    ],
)
def test_modules_in_training_are_refused_and_in_evaluation_served(arguments, message):
    model = Module(**arguments)
    before = jax.tree.map(np.copy, nnx.state(model, nnx.BatchStat))
    with pytest.raises(ValueError, match=f"(?s)`prefix` must {message}"):
        dm.cache_features(Module.features, model, X, **OF_MODULE)
    model.eval()
    found = dm.cache_features(Module.features, model, X, batch_size=4, **OF_MODULE)
    np.testing.assert_allclose(found, model.features(X), rtol=1e-5, atol=1e-6)
    after = nnx.state(model, nnx.BatchStat)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    np.testing.assert_allclose(model.dense_1(found), model(X), rtol=1e-5, atol=1e-6)


def normalized(params, x):
    h = PREFIX(params, x)
    return (h - h.mean(axis=0)[None]) / h.std(axis=0)[None]


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (normalized, "must map each sample by itself"),
        (lambda params, x: PREFIX(params, x).mean(axis=0), "leading axis over samples"),
        (
            lambda params, x: (
                PREFIX(params, x) * jax.random.bernoulli(KEY, 0.5, (10, 12))
            ),
            "must draw no random numbers",
        ),
        (
            functools.partial(span, stop=3),
            "read the first 2 layers alone.*'dense_2/bias' of layer 2",
        ),
        (
            jax.jit(functools.partial(span, stop=4)),
            "read the first 2 layers alone.*'dense_2/bias' of layer 2",
        ),
    ],
)
@pytest.mark.usefixtures("standard_promotion")
def test_prefixes_that_can_not_be_kept_are_refused(prefix, message):
    with pytest.raises(ValueError, match=message):
        dm.cache_features(
            prefix, network(), X, layers=LAYERS, sampling=SAMPLING, step=4
        )


def test_a_jitted_prefix_reads_what_it_reads():
    found = dm.cache_features(
        jax.jit(PREFIX), network(), X, layers=LAYERS, sampling=SAMPLING, step=4
    )
    np.testing.assert_allclose(found, cache(network(), X), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 3}, "read the first 0 layers alone.* at step 3"),
        ({"sampling": Progressive()}, "read the first 0 layers alone"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"step": -1}, "`count` must be"),
        ({"dtype": "int32"}, "`dtype` must be"),
    ],
)
def test_other_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        cache(network(), X, **changes)


@pytest.mark.parametrize("inputs", [{}, np.float32(1.0), {"a": X, "b": X[:3]}, X[:0]])
def test_inputs_without_samples_are_refused(inputs):
    with pytest.raises(ValueError, match="`inputs` must be arrays with a leading axis"):
        cache(network(), inputs)


TURNS = Staged(((0, Full()), (5, Progressive((0.0, 0.3, 0.7))), (9, EpochShift(12))))
GONE = (False, False, True)
SAMPLINGS = [
    *(Full(), Progressive(), Progressive((0.0, 0.0, 1.0)), EpochShift(7)),
    EpochShift(6, alpha=90.0),  # the first probabilities are below 2⁻³³ in the end
    *(Staged(((0, Full()), (5, Progressive((0.0, 0.3, 0.7))))), TURNS),
    Grown(((0, GONE), (3, (True,) * 3), (8, (False, True, True)))),
    *(dm.samplings.RoundRobin(), dm.samplings.Nice(1)),
    dm.samplings.Independent((0.0, 0.5, 1.0)),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)
def test_settled_layers_never_move_again(sampling):
    steps = np.arange(40)
    sets = np.array([dm.active_layers(sampling, 3, KEY, k) for k in steps])
    # A probability below 2⁻³³ is none: draws are comparisons with words of 32 bits.
    moves = np.array([sampling.marginals(3, k) for k in steps]) > 2.0**-33
    for step in range(20):
        settled = sampling.settled(3, step)
        assert settled == np.argmax(moves[step:].any(axis=0))
        assert not sets[step:, :settled].any()


def test_other_counts_are_refused():
    with pytest.raises(ValueError, match="`count` must be"):
        Progressive().settled(3, -1)
