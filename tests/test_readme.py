"""Programs of the README and the guide do what is said of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dropmuon_optax as dm
from tests.documents import (
    NUM_BLOCKS,
    ROOT,
    VOCABULARY,
    WIDTH,
    batch_of,
    loss_fn,
    program,
    reader_has,
)

README = ROOT / "README.md"
DOCS = ROOT / "docs"


@pytest.fixture(autouse=True)
def users_settings():
    """JAX's own promotion of types and ranks, as users have it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


LAYERS = program(DOCS / "choosing.md", "layers = dm.layers_by_path")


@pytest.fixture
def names():
    return reader_has()


def test_the_first_program_fits_its_function(capsys):
    exec(program(README, "import jax, jax.numpy as jnp, optax"), {})
    # The targets sin(x) have variance ½(1 − e^(−2·8)): a mean alone leaves a loss of ½.
    assert float(capsys.readouterr().out) < 0.05


def test_layers_have_the_norms_and_radii_that_it_says(names, capsys):
    exec(LAYERS, names)
    params, tx = names["params"], names["tx"]
    assert f"1 × ({WIDTH}, {VOCABULARY})" in capsys.readouterr().out  # `describe`
    grads = jax.grad(loss_fn)(params, batch_of(0))
    updates, _ = tx.update(grads, tx.init(params), params)
    step = jax.tree.map(lambda x: float(jnp.max(jnp.abs(x))), updates)
    # Sign steps are learning rate · radius / n_in in every entry, n_in the width.
    assert step["embed"]["embedding"] == pytest.approx(2e-3 * 60 / WIDTH)
    assert step["head"]["kernel"] == pytest.approx(2e-3 * 60 / WIDTH)
    rms = np.sqrt(np.mean(np.square(updates["head"]["bias"])))
    assert rms == pytest.approx(2e-3, rel=1e-4)
    length = np.linalg.norm(updates["blocks_0"]["kernel"], 2)
    assert 0.6 < length / 2e-3 < 1.3  # Newton–Schulz: 1 is 0.68…1.20


def test_drop_muon_in_a_loop(names):
    layers = dm.layers_by_path(order=["embed", r"blocks_(\d+)", "head"])
    tx = dm.drop_muon(0.02, layers, dm.samplings.Progressive(), key=jax.random.key(0))
    names["opt_state"] = tx.init(names["params"])
    names["batches"] = [batch_of(seed) for seed in range(60)]
    before = float(loss_fn(names["params"], batch_of(99)))
    exec(program(README, "from functools import partial"), names)
    assert float(loss_fn(names["params"], batch_of(99))) < before - 1.0
    assert names["num_layers"] == NUM_BLOCKS + 2


class Network(nnx.Module):
    """The README's names, with batch statistics and Dropout."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        for i in range(NUM_BLOCKS):
            setattr(self, f"blocks_{i}", nnx.Linear(WIDTH, WIDTH, rngs=rngs))
        self.blocks_0_norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for i in range(NUM_BLOCKS):
            x = x + jnp.tanh(getattr(self, f"blocks_{i}")(x))
        return self.head(self.dropout(self.blocks_0_norm(x)))


def test_drop_muon_in_a_loop_of_nnx(names):
    exec(LAYERS, names)

    def loss_fn(model, batch):
        logits, targets = model(batch[:, 0]), batch[:, 1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    model = Network()
    names |= {
        "partial": functools.partial,
        "model": model,
        "loss_fn": loss_fn,
        "sampling": dm.samplings.Progressive(),
        "key": jax.random.key(0),
        "batches": [batch_of(seed) for seed in range(60)],
    }
    before = float(loss_fn(nnx.clone(model), batch_of(99)))
    exec(program(DOCS / "drop_muon.md", "from flax import nnx"), names)
    assert float(names["loss"]) < before - 0.5
    assert names["num_layers"] == NUM_BLOCKS + 2
    # One draw of Dropout and one average of BatchNorm in each step, whatever moved.
    assert model.dropout.rngs.count[...] == 60
    assert model.blocks_0_norm.mean[...].all()


def test_ef21_muon_on_a_mesh_sends_what_may_be_sent(names):
    exec(LAYERS, names)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    names |= {"mesh": mesh, "batch": batch_of(0)}
    before = names["params"]
    exec(program(README, "from dropmuon_optax.compressors import"), names)
    for old, new, true in zip(
        *(jax.tree.leaves(names[k]) for k in ("params", "evaluated")),
        jax.tree.leaves(before),
        strict=True,
    ):
        assert old.shape == new.shape == true.shape
        assert np.isfinite(old).all()
        assert not np.array_equal(old, true)  # every leaf moved
    exec(program(DOCS / "ef21_muon.md", "compiled = "), names)
    # Its assertion holds for a mebibyte; here a message has less than a float32 each.
    dense = 4 * sum(x.size for x in jax.tree.leaves(before))
    assert 0 < dm.count_wire_bytes(names["compiled"]).total < 2 * dense
