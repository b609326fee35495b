"""Relays: a matrix's blocks of rows with several workers, its oracle with one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType

import dropmuon_optax as dm
from benchmarks.ef21_muon import bytes as ef21_bytes
from dropmuon_optax import norms
from dropmuon_optax.compressors import ColumnTopK, Identity, Natural, RandK, RankK, TopK
from dropmuon_optax.counters.bytes import count_traced_bytes
from dropmuon_optax.wire.balance import Lot, among_carriers
from dropmuon_optax.wire.ownership import own
from dropmuon_optax.wire.relays import moves, passed_on, rounds
from dropmuon_optax.wire.stacks import select
from tests.reference import drop_muon as numpy_lmos
from tests.reference import ef21 as box

N = 8
# Of 960 entries a worker's share is 123: "a" and "c" are five and "tall" is two of it.
SHAPES = {"a": (12, 20), "tall": (20, 12), "c": (24, 16), "head": (4, 27), "v": (7,)}
ORDER = ["^a$", "^tall$", "^c$", "^(?:head|v)$"]
SPECTRAL = norms.Spectral(num_steps=None)
LAYERS = dm.layers_by_path(
    ORDER, [("head", norms.MaxEntry(), 0.1), ("v", norms.Frobenius(), 0.2),
            ("", SPECTRAL, 0.5)],
)  # fmt: skip
LR, BETA = 0.1, 0.25


def make(worker, server=None, **changes):
    return dm.ef21_muon(
        LR, LAYERS, worker, server, 1 - BETA, key=jax.random.key(0),
        **{"num_workers": N, "relays": True, **changes},
    )  # fmt: skip


def normal(seed, *lead):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=(*lead, *shape)) for k, shape in SHAPES.items()}


def float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def mesh_of(*sizes):
    names = ("data", "local")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes))


def mapped(tx, state, mesh=None, axis="data", active=None):
    def step(params, state, g):
        mine = jax.tree.map(lambda x: x[0], g)
        updates, state = tx.update(mine, state, params, active=active)
        return optax.apply_updates(params, updates), state

    return dm.worker_map(step, axis, state, mesh)


def steps(tx, grads, mesh=None, axis="data", sets=None, **start):
    """(W, state) after all the gradients, each with a leading axis of workers."""
    params = start.get("params", float32(normal(0)))
    state = start["state"] if "state" in start else tx.init(params)
    turns = {}
    for k, g in enumerate(grads):
        active = None if sets is None else sets[k]
        if active not in turns:
            turns[active] = jax.jit(mapped(tx, state, mesh, axis, active))
        params, state = turns[active](params, state, g)
    return params, state


def assert_close(actual, expected, atol):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(e), rtol=0, atol=atol)


def rows_apart(compress, x):
    """𝒞 of blocks of rows, of a matrix that lies on its longer side."""
    if x.shape[0] > x.shape[1]:
        return rows_apart(compress, x.T).T
    parts = {240: 2, 384: 4}.get(x.size, 1)
    return np.concatenate([compress(block) for block in np.split(x, parts)])


@pytest.mark.parametrize("worker", ["top", "natural"])
def test_the_box_in_numpy_on_blocks_of_rows(worker):
    """Without a server's compressor, whose choices roundings would tip."""
    ours, its = {
        "top": (TopK(0.2, block=None), box.top_k(0.2)),
        "natural": (Natural(), box.natural),
    }[worker]
    noise = [normal(1 + k, N) for k in range(6)]
    params, _ = steps(make(ours), [float32(g) for g in noise])
    radius = {"a": 0.5, "tall": 0.5, "c": 0.5, "head": 0.1, "v": 0.2}
    lmos = {
        **dict.fromkeys(("a", "tall", "c"), numpy_lmos.spectral),
        "head": lambda g, t: -t * np.sign(g),
        "v": lambda g, t: -t * g / np.linalg.norm(g),
    }
    compress = dict.fromkeys(SHAPES, functools.partial(rows_apart, its))
    expected = box.ef21_muon(
        normal(0),
        lambda W, j, k: {name: noise[k][name][j] for name in W},
        N,
        lmos,
        {name: LR * t for name, t in radius.items()},
        BETA,
        compress | {"v": box.identity},
        None,
        [tuple(SHAPES)] * 6,
    )
    assert_close(params, expected[-1][0], atol=5e-5)


def test_who_carries_what():
    ownership = own(LAYERS, normal(0), N, N, Natural(), Natural(), relays=True)
    parts = {
        stack.shape: k
        for stack, k in zip(ownership.stacks, ownership.parts, strict=True)
    }
    assert parts == {(12, 20): 2, (16, 24): 4, (4, 27): 1, (1, 7): 1}
    loads = np.zeros(N)
    for k, stack, owners, carriers in zip(
        ownership.parts, ownership.stacks, ownership.owners, ownership.carriers,
        strict=True,
    ):  # fmt: skip
        np.add.at(loads, list(carriers), stack.shape[0] * stack.shape[1] // k)
        by_member = np.reshape(carriers, (len(owners), k)).tolist()
        assert all(owner in who for owner, who in zip(owners, by_member, strict=True))
    assert loads.max() == 2 * 96  # nine things for eight workers
    whole = own(LAYERS, normal(0), N, N, Natural(), Natural())
    assert set(whole.parts) == {1}
    assert whole.owners == whole.carriers


def test_columns_that_are_looked_at_stay_whole():
    ownership = own(LAYERS, normal(0), N, N, ColumnTopK(0.5), None, relays=True)
    assert set(ownership.parts) == {1}


@pytest.mark.parametrize("compressor", [TopK(0.2), RandK(0.2)], ids=repr)
def test_devices_simulation_and_gathering_agree(compressor):
    grads = [float32(normal(k, N)) for k in range(2)]
    real, _ = steps(make(compressor), grads, mesh_of(N))
    simulated, _ = steps(make(compressor), grads)
    assert_close(real, simulated, atol=1e-5)
    gathered, _ = steps(make(compressor, topology="gather"), grads, mesh_of(N))
    assert_close(real, gathered, atol=1e-5)


def test_without_compression_relays_change_nothing():
    grads = [float32(normal(k, N)) for k in range(3)]
    plain = make(Identity(), Identity(), relays=False)
    with_relays, state = steps(make(Identity(), Identity()), grads, mesh_of(N))
    without, other = steps(plain, grads, mesh_of(N))
    assert_close(with_relays, without, atol=1e-5)
    X, Y = (
        dm.ef21_muon_eval_params(s, p)
        for s, p in ((state, with_relays), (other, without))
    )
    assert_close(X, Y, atol=1e-5)


def test_memories_of_blocks_freeze_with_their_layer():
    compressor = RankK(0.25, warm_start=True)
    grads = [float32(normal(k, N)) for k in range(2)]
    tx = make(compressor, compressor)
    start = dict(zip(("params", "state"), steps(tx, grads[:1]), strict=True))
    sets = [(False, True, False, True)]
    simulated, after = steps(tx, grads[1:], sets=sets, **start)
    real, _ = steps(tx, grads[1:], mesh_of(N), sets=sets, **start)
    assert_close(real, simulated, atol=1e-4)
    ownership = own(LAYERS, normal(0), N, N, compressor, compressor, relays=True)
    tall = next(i for i, x in enumerate(ownership.leaves) if x.path == "tall")
    piece = ownership.leaves[tall].pieces[0]
    moved = range(2 * piece.first, 2 * piece.first + 2)
    before, now = start["state"].memory[piece.stack], after.memory[piece.stack]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(now), strict=True):
        changed = {j for j in range(old.shape[1]) if np.any(old[:, j] != new[:, j])}
        assert changed == set(moved)


def test_nodes_of_several_devices():
    grads = [float32(normal(k, N)) for k in range(3)]
    nodes = [
        jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]).mean(1), g) for g in grads
    ]
    how = {"num_workers": 4}
    tx = make(TopK(0.2), Natural(), local_axis_name="local", **how)
    params, _ = steps(tx, grads, mesh_of(4, 2), axis=("data", "local"))
    expected, _ = steps(make(TopK(0.2), Natural(), **how), nodes, mesh_of(4))
    assert_close(params, expected, atol=1e-4)


def test_bytes_by_hand():
    tx, params = make(Natural(), Natural()), float32(normal(0))
    state = tx.init(params)
    g = jax.tree.map(lambda x: jnp.stack([x] * N), params)
    program = mapped(tx, state, mesh_of(N))
    found = count_traced_bytes(program, params, state, g)
    compiled = jax.jit(program).lower(params, state, g).compile()
    assert dm.count_wire_bytes(compiled).total == found.total
    # Of "c", four blocks of (4, 24), its owner carries two and gets two, in two rounds;
    # the others' blocks, (6, 20), go beside them, so that one round is as wide as they.
    selection = select(own(LAYERS, params, N, N, Natural(), Natural(), relays=True))
    dense, coded = passed_on(selection)
    assert found.by_kind["collective-permute"] == dense + coded
    assert dense == 4 * (6 * 20 + 4 * 24)
    assert coded == 9 * (6 * 20 + 4 * 24) // 8
    longest = max(
        sum(9 * b.shape[0] * b.shape[1] // 8 * carriers.count(j) for b, carriers in zip(
            selection.sent.ownership.stacks, selection.ownership.carriers, strict=True
        ) if b.shape[0] > 1)
        for j in range(N)
    )  # fmt: skip
    letter = found.by_kind["all-gather"] / (N - 1)
    assert longest <= letter <= longest + 4 * 7


def test_rounds_are_of_different_workers():
    ownership = own(LAYERS, normal(0), N, N, Natural(), Natural(), relays=True)
    way = moves(select(ownership))
    found = rounds(way, dict.fromkeys(range(len(ownership.stacks)), 1))
    for one in found:
        assert len({m.source[0] for m in one}) == len(one)
        assert len({m.target[0] for m in one}) == len(one)
    far = [move for move in way if move.source[0] != move.target[0]]
    assert sorted(m for one in found for m in one) == sorted(far)


@pytest.mark.parametrize(
    ("n", "pair"),
    [
        (64, "natural/scaled_sign"),
        (256, "natural/scaled_sign"),
        (256, "top50_sign/scaled_sign"),
        (256, "top10_natural/same"),
    ],
)
def test_bytes_of_a_124m_tree_are_near_the_ideal(n, pair):
    case = ef21_bytes.Case("124m", pair, "relays", n, compiled=False)
    entry = ef21_bytes.measure(case)
    assert entry["bytes_per_step"] <= 1.25 * entry["ideal_bytes_per_step"]


def test_owners_are_spread_by_work():
    """One large and one small matrix on two carriers of both: one each."""
    lots = [Lot(1, 8, 8), Lot(1, 8, 5)]
    owners, ratio = among_carriers(lots, [2, 2], [(0, 1), (0, 1)], 2)
    assert owners == ((0,), (1,))
    assert ratio == 2.0  # each runs both, one of them on zeros


def test_describe_owners(capsys):
    text = dm.describe_owners(
        LAYERS, float32(normal(0)), Natural(), Natural(), num_workers=N, relays=True
    )
    assert capsys.readouterr().out == text + "\n"
    assert "1 × (16, 24) Spectral(num_steps=None), 1 places, sent in 4 blocks" in text
    assert "passed on: 864 bytes to owners, 243 from them" in text


def test_a_flag(without_type_checks):
    with pytest.raises(ValueError, match="`relays` must be"):
        make(Natural(), relays=2)


def test_a_state_without_relays_is_none_with_them(tmp_path):
    params = float32(normal(0))
    plain = make(TopK(0.2), relays=False)
    grads = [float32(normal(1, N))]
    with pytest.raises(ValueError, match="`state` must be of these"):
        steps(make(TopK(0.2)), grads, state=plain.init(params))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", plain.init(params))
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(make(TopK(0.2)).init, params)
        with pytest.raises(ValueError, match=r"8_owners_\w+.*8_owners_"):
            checkpointer.restore(tmp_path / "run", shapes)
