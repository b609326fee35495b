"""`python -m benchmarks.ef21_muon`: its lines, tables and pictures."""

import json
import re

import numpy as np
import pytest

from benchmarks.ef21_muon import __main__ as ef21_muon
from benchmarks.ef21_muon import bytes as ef21_bytes
from benchmarks.ef21_muon import compressors, cost, losses
from benchmarks.ef21_muon.losses_report import (
    Sent,
    groups_of,
    key_of,
    penalty,
    reference,
    saving,
)


def lines(folder, part):
    path = folder / f"ef21_muon_{part}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bytes_are_counted_alike_before_and_after_the_compiler(tmp_path, capsys):
    arguments = ["bytes", "--trees", "nano", "--workers", "2", "--compiled"]
    arguments += ["--compressors", "natural", "--output", str(tmp_path)]
    assert ef21_muon.main(arguments) == 0
    found = lines(tmp_path, "bytes")
    assert len(found) == 8  # three servers and gather; each traced, then compiled
    assert [entry["compiled"] for entry in found] == [False, True] * 4
    for traced, compiled in zip(found[::2], found[1::2], strict=True):
        assert traced["bytes_per_step_by_kind"] == compiled["bytes_per_step_by_kind"]
        assert traced["unattributed"] == compiled["unattributed"] == []
    # Every matrix of this tree has a number of entries that 8 divides: 9 bits each.
    (same,) = [entry for entry in found[::2] if entry["pair"] == "natural/same"]
    np.testing.assert_allclose(ef21_bytes.saving(same), 32 / 9)
    assert "4 counts of both, 0 differ" in capsys.readouterr().out
    assert (tmp_path / "ef21_muon_bytes.png").read_bytes().startswith(b"\x89PNG")


def test_nodes_send_to_each_other_what_devices_would(tmp_path, capsys):
    arguments = ["bytes", "--trees", "nano", "--pairs", "natural/same"]
    arguments += ["--topologies", "owner", "relays", "--output", str(tmp_path)]
    assert ef21_muon.main([*arguments, "--workers", "4"]) == 0
    assert ef21_muon.main([*arguments, "--workers", "4", "--devices", "2"]) == 0
    alone, with_relays, nodes, nodes_with_relays = lines(tmp_path, "bytes")
    for ours, its in ((alone, nodes), (with_relays, nodes_with_relays)):
        assert ours["bytes_per_step_within"] == 0 < its["bytes_per_step_within"]
        sent = its["bytes_per_step"] - ours["bytes_per_step"]
        assert 0 <= sent <= 64  # padding, to split letters and blocks evenly
    table = capsys.readouterr().out
    assert re.search(r"\| relays +\| +4 × 2 \|", table)


def test_the_model_of_the_paper_has_the_table_that_we_know():
    width, hidden, vocabulary = 768, 3072, 50304
    shapes = [(width, width)] * 48 + [(width, hidden)] * 24 + [(vocabulary, width)]
    known = {"identity": 1.0, "natural": 0.5, "rank20": 0.2686, "rank5_natural": 0.0334}
    known |= {"top20": 0.3625, "top15_natural": 0.1969, "rank10": 0.1334}
    for name, share in known.items():
        np.testing.assert_allclose(ef21_bytes.model(name, shapes), share, atol=6e-5)
    assert ef21_bytes.model("bfloat16", shapes) is None


@pytest.mark.usefixtures("text", "standard_promotion")  # Optax's cross-entropy
def test_a_small_sweep(tmp_path, capsys):
    arguments = ["losses", "--pairs", "identity/dense", "natural/same"]
    arguments += ["--rates", "0.0001", "0.001", "--seeds", "0", "1", "--blocks", "1"]
    arguments += ["--momenta", "0.5", "--sampling", "half_full"]
    arguments += ["--width", "16", "--heads", "2", "--length", "8", "--batch-size", "2"]
    arguments += ["--steps", "4", "--evaluations", "2", "--validation", "8"]
    arguments += ["--workers", "2", "--output", str(tmp_path)]
    assert ef21_muon.main(arguments) == 0
    found = lines(tmp_path, "losses")
    assert len(found) == 6  # of each pair two rates, then another seed at the better
    dense, natural = groups_of(found)
    assert [len(group.entries) for group in (dense, natural)] == [2, 2]
    for run in (*dense.entries, *natural.entries):
        assert [point["step"] for point in run["history"]] == [0, 2, 4]
        assert run["history"][-1]["num_tokens"] == 4 * 2 * 2 * 8
    assert ef21_muon.main(arguments) == 0  # which finds all of it done
    assert lines(tmp_path, "losses") == found
    assert ef21_muon.main(["sent", "--output", str(tmp_path)]) == 0
    for run in dense.entries:  # X = W where the server sends all
        assert run["final_validation_loss"] == run["final_validation_loss_of_w"]
    assert natural.entries[0]["final_validation_loss_of_w"] is not None
    sent = Sent(lines(tmp_path, "sent"))
    assert saving(sent, dense, dense) == 1.0
    # As many layers move in both: natural sends 9 bits of 32, and fills up letters of
    # whoever doesn't own the head where it moves alone.
    assert 0.7 * 32 / 9 < saving(sent, natural, dense) <= 32 / 9
    counts = sent.newest[key_of(natural.entries[0])]["bytes_from"]
    assert counts == sorted(counts, reverse=True)  # fewer layers, fewer bytes
    assert len(set(counts)) > 1
    assert penalty(dense, dense) == 0.0
    capsys.readouterr()


def test_workers_see_their_own_pieces():
    plan = losses.Plan(num_workers=2, batch_size=3, length=4)

    class Corpus:
        train = (np.repeat(np.arange(2, dtype=np.uint16), 50),)  # one piece each

    windows = losses.batch(plan, Corpus, seed=0, step=1)
    assert windows.shape == (6, 5)
    assert np.all(windows[:3] == 0)
    assert np.all(windows[3:] == 1)


def test_the_cost_of_compression(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "SHAPES", ((32, 64),))
    arguments = ["cost", "--pairs", "natural/same", "--preset", "nano"]
    arguments += ["--rounds", "1", "--length", "8", "--output", str(tmp_path)]
    assert ef21_muon.main(arguments) == 0
    matrix, step = lines(tmp_path, "cost")
    assert matrix["of_lax_top_k"]["lax_top_k"]["median"] == 1.0
    assert matrix["time_s"]["natural_and_back"]["median"] > 0
    assert step["num_tokens_per_step"] == 16 * 8
    assert step["share_of_step"]["identity/dense"] == 0.0
    assert "| natural/same " in capsys.readouterr().out


def test_unknown_pairs_are_refused(refusal):
    arguments = ["losses", "--pairs", "natural/nothing"]
    assert "worker/server" in refusal(ef21_muon.parse, arguments)
    assert compressors.pair("natural/dense").of_server is None


def test_a_run_is_compared_with_dense_ones_of_its_size_alone():
    plan = losses.Plan()._asdict()

    def run(pair, **changes):
        common = {"learning_rate": 1.0, "momentum": 0.7, "seed": 0}
        common |= {"final_validation_loss": 2.0}
        return {"pair": pair, **plan, **common, **changes}

    other, dense, own = groups_of(
        [
            run("identity/dense", num_workers=8, final_validation_loss=1.0),
            run("identity/dense"),
            run("natural/same", initial="gradient"),
        ]
    )
    assert reference([other, dense, own], own) == dense
    assert own.label == "natural/same, initial gradient"
    long, longer, alone = groups_of(
        [
            run("identity/dense", num_steps=900),
            run("natural/same", num_steps=900),
            run("natural/same", num_steps=400),
        ]
    )
    assert reference([dense, long, longer, alone], longer) == long
    assert reference([dense, long, longer, alone], alone) == dense
