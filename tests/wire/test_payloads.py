"""What is compressed is what crosses the wire: bytes in compiled programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import dropmuon_optax as dm
from dropmuon_optax import norms
from dropmuon_optax.compressors import (
    BFloat16,
    Composed,
    Identity,
    Natural,
    RandK,
    RankK,
    TopK,
)
from dropmuon_optax.counters.bytes import count_traced_bytes
from dropmuon_optax.wire import packing

N = 4
WIDE, TALL = (32, 48), (48, 32)
SHAPES = {"a": WIDE, "tall": TALL, "c": WIDE, "d": WIDE, "head": (32, 96)}
LAYERS = dm.layers_by_path(
    ["^a", "tall", "^c", "^d", "head"],
    [("head", norms.MaxEntry(), 1.0), ("", norms.Spectral(num_steps=1), 1.0)],
)
COMPRESSORS = [
    Identity(),
    BFloat16(),
    Natural(),
    TopK(0.1),
    RankK(0.25),
    RandK(0.1),
    Composed(TopK(0.1), Natural()),
    Composed(RankK(0.25), Natural()),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Cuts the head, small as it is, into a block of columns for each worker."""
    monkeypatch.setattr("dropmuon_optax.wire.ownership.MIN_BLOCK", 16)


def params():
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def program(tx, active=None):
    """The compiled update on given gradients; and the function and its arguments."""
    mesh = jax.make_mesh((N,), ("data",), axis_types=(AxisType.Auto,))
    state = tx.init(params())

    def step(params, state, g):
        mine = jax.tree.map(lambda x: x[0], g)
        updates, state = tx.update(mine, state, params, active=active)
        return optax.apply_updates(params, updates), state

    mapped = dm.worker_map(step, "data", state, mesh)
    g = jax.tree.map(lambda w: jnp.stack([w] * N), params())
    compiled = jax.jit(mapped).lower(params(), state, g).compile()
    return compiled, (mapped, params(), state, g)


def make(worker, server, topology="owner", **changes):
    return dm.ef21_muon(
        0.1, LAYERS, worker, server, num_workers=N, topology=topology,
        key=jax.random.key(0), **changes,
    )  # fmt: skip


def payload(compressor, names=SHAPES):
    """Bytes of all messages of one worker, by the compressor's own account.

    Matrices lie on their longer side, whatever side that is in the parameters.
    """
    members = {name: [tuple(sorted(shape))] for name, shape in SHAPES.items()}
    members["head"] = [(96 // N, 32)] * N
    shapes = [shape for name in names for shape in members[name]]
    return sum(compressor.num_bits(shape) // 8 for shape in shapes)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_owners_send_and_receive_payloads_and_nothing_else(compressor):
    compiled, traced = program(make(compressor, compressor))
    # An all-to-all of each worker's payloads, an all-gather of each owner's: a device
    # sends all but its own share, (n − 1)/n of the payloads, each way.
    expected = 2 * (N - 1) / N * payload(compressor)
    found = dm.count_wire_bytes(compiled)
    assert found.total == expected
    assert set(found.by_kind) == {"all-to-all", "all-gather"}
    assert not found.unattributed
    assert {c.dtype for c in found.collectives} <= {"u8"}
    assert count_traced_bytes(*traced).total == expected


@pytest.mark.parametrize("compressor", [TopK(0.1), Natural()], ids=repr)
def test_gathering_sends_every_payload_to_everyone(compressor):
    compiled, _ = program(make(compressor, None, topology="gather"))
    assert dm.count_wire_bytes(compiled).total == (N - 1) * payload(compressor)


def test_a_dense_step_comes_back_dense():
    compiled, _ = program(make(TopK(0.1), None))
    dense = 4 * sum(map(np.prod, SHAPES.values()))
    expected = (N - 1) / N * (payload(TopK(0.1)) + dense)
    assert dm.count_wire_bytes(compiled).total == expected


def test_frozen_layers_send_nothing():
    active = (False, False, False, True, True)
    compiled, _ = program(make(TopK(0.1), Natural()), active)
    # "d" goes to one owner only; the buffer has its place for each of the four.
    ways = [
        payload(c, ["d"]) * N + payload(c, ["head"]) for c in (TopK(0.1), Natural())
    ]
    assert dm.count_wire_bytes(compiled).total == (N - 1) / N * sum(ways)


def test_nodes_send_each_payload_once():
    tx = make(TopK(0.1), Natural(), local_axis_name="local")
    mesh = jax.make_mesh((N, 2), ("data", "local"), axis_types=(AxisType.Auto,) * 2)
    state = tx.init(params())

    def step(params, state, g):
        mine = jax.tree.map(lambda x: x[0], g)
        updates, state = tx.update(mine, state, params)
        return optax.apply_updates(params, updates), state

    mapped = dm.worker_map(step, ("data", "local"), state, mesh)
    g = jax.tree.map(lambda w: jnp.stack([w] * 2 * N), params())
    compiled = jax.jit(mapped).lower(params(), state, g).compile()
    between = [
        c for c in dm.count_wire_bytes(compiled).collectives if c.group_size == N
    ]
    # Both devices of a node together; a byte of padding each, to split evenly.
    once = (N - 1) / N * (payload(TopK(0.1)) + payload(Natural()))
    sent = 2 * sum(c.wire_bytes for c in between)
    assert once <= sent <= once + 4 * N


def test_gradients_are_each_workers_own():
    mesh = jax.make_mesh((N,), ("data",), axis_types=(AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    x = jnp.arange(8.0).reshape(N, 2)

    def loss(w, x):
        return jnp.sum(w * x)

    def own(w, x):
        return jax.grad(loss)(dm.local_params(w, "data"), x[0])[None]

    mapped = jax.jit(
        jax.shard_map(
            own, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec("data")
        )
    )
    compiled = mapped.lower(jnp.ones(2), x).compile()
    assert dm.count_wire_bytes(compiled).total == 0
    np.testing.assert_array_equal(mapped(jnp.ones(2), x), x)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_gradients_that_are_summed_are_refused(kind):
    mesh = jax.make_mesh((N,), ("data",), axis_types=(kind,))
    tx = dm.ef21_muon(
        0.1, dm.layers_by_path(None), Natural(), num_workers=N, key=jax.random.key(0)
    )
    w, x = {"kernel": jnp.ones((4, 8))}, jnp.ones((N, 4))

    def step(params, state, x, local=True):
        at = dm.local_params(params, "data") if local else params
        g = jax.grad(lambda w: jnp.sum(x @ w["kernel"]))(at)
        return tx.update(g, state, params)

    for local in (True, False):
        run = functools.partial(step, local=local)
        mapped = dm.worker_map(run, "data", tx.init(w), mesh)
        if local:
            jax.eval_shape(mapped, w, tx.init(w), x)
        else:
            with pytest.raises(ValueError, match=r"summed over 'data'.*local_params"):
                jax.eval_shape(mapped, w, tx.init(w), x)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_bytes_round_trip(compressor):
    rng = np.random.default_rng(1)
    stack = jnp.asarray(rng.normal(size=(3, 32, 48)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    rows, _ = packing.encode(compressor, stack, (), keys)
    assert rows.dtype == jnp.uint8
    assert rows.shape == (3, compressor.num_bits((32, 48)) // 8)
    found = packing.decode(compressor, rows, (32, 48))
    for x, key, back in zip(stack, keys, found, strict=True):
        sent = compressor.compress(x, key=key)
        expected = compressor.decompress(sent, (32, 48))
        # The same arithmetic, vectorized: roundings of products only.
        np.testing.assert_allclose(back, expected, rtol=0, atol=1e-5)
