"""Owners of a 124M tree: bytes and the oracle's work, by hand and in the program."""

import jax
import numpy as np
import pytest

import dropmuon_optax as dm
from benchmarks.ef21_muon import bytes as ef21_bytes
from benchmarks.models import nanogpt
from dropmuon_optax.compressors import Natural
from dropmuon_optax.wire.balance import Lot, places, share_out
from dropmuon_optax.wire.ownership import own

UNIT = 768 * 768
HIDDEN = [Lot(48, UNIT, 3), Lot(24, 4 * UNIT, 9)]


@pytest.mark.parametrize("n", [1, 2, 3, 8, 16, 64, 100])
@pytest.mark.parametrize("work_share", [0.0, 0.25, 1.0])
def test_everything_has_one_owner_and_the_ratios_are_what_they_say(n, work_share):
    lots = [*HIDDEN, Lot(4 * n, UNIT // n, 0)]
    shares = share_out(lots, n, work_share)
    loads, work = np.zeros(n), 0
    for lot, owners in zip(lots, shares.owners, strict=True):
        assert len(owners) == lot.count
        held = np.bincount(owners, minlength=n)
        assert len(held) == n
        loads += held * lot.num_bytes
        work += held.max() * lot.work
        own_places = places(owners)
        assert len(set(zip(owners, own_places.tolist(), strict=True))) == lot.count
    mean_work = sum(lot.count * lot.work for lot in lots) / n
    np.testing.assert_allclose(shares.bytes_ratio, loads.max() / loads.mean())
    np.testing.assert_allclose(shares.work_ratio, work / mean_work)


def test_work_is_had_for_bytes():
    """Of 72 matrices on 64 owners, 8 come second: beside which, is the question."""
    lots = [*HIDDEN, Lot(256, UNIT // 4, 0)]
    least_bytes = share_out(lots, 64, 0.0)
    least_work = share_out(lots, 64, 1.0)
    assert least_bytes.bytes_ratio < 1.25 < least_work.bytes_ratio
    assert least_work.work_ratio < least_bytes.work_ratio


def test_members_of_one_size_go_round():
    assert share_out([Lot(6, 1, 1)], 4, 0.25).owners == ((0, 1, 2, 3, 0, 1),)


@pytest.mark.parametrize("n", [16, 64])
@pytest.mark.parametrize("pair", ["natural/same", "top50_sign/scaled_sign"])
def test_bytes_of_a_124m_tree_are_near_the_ideal(n, pair):
    case = ef21_bytes.Case("124m", pair, "owner", n, compiled=False)
    entry = ef21_bytes.measure(case)
    assert entry["bytes_per_step"] <= 1.25 * entry["ideal_bytes_per_step"]


def test_blocks_of_an_embedding_fill_the_gaps():
    config = nanogpt.PRESETS["124m"]
    params = jax.eval_shape(lambda: nanogpt.build(config, seed=0)[1])
    rules = Natural(), Natural()
    ownership = own(nanogpt.layers(config), params, 16, 16, *rules)
    counts = [len(stack.radii) for stack in ownership.stacks]
    loads = np.zeros(16)
    for stack, owners in zip(ownership.stacks, ownership.owners, strict=True):
        loads += np.bincount(owners, minlength=16) * np.prod(stack.shape)
    assert sorted(counts) == [24, 32, 48]  # two blocks for each owner
    assert loads.max() / loads.mean() < 1.02


@pytest.mark.parametrize("work_share", [-0.1, 1.1, float("nan")])
def test_a_share_is_one(work_share):
    with pytest.raises(ValueError, match="`work_share` must be"):
        dm.ef21_muon(
            0.1,
            nanogpt.layers(nanogpt.PRESETS["nano"]),
            Natural(),
            num_workers=2,
            work_share=work_share,
            key=jax.random.key(0),
        )
