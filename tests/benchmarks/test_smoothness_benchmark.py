"""`python -m benchmarks.smoothness`: its record, its tables, its picture."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from benchmarks import smoothness, smoothness_runs, text
from benchmarks.models import nanogpt


@pytest.mark.usefixtures("standard_promotion")  # Optax's cross-entropy
def test_a_small_run_leaves_a_line_tables_and_a_picture(tmp_path, monkeypatch, capsys):
    digits = partial(smoothness_runs.on_images, dataset="digits")
    monkeypatch.setitem(smoothness.TASKS, "cnn", digits)
    monkeypatch.setattr(smoothness, "MULTIPLES", (1.0,))
    arguments = ["--model", "cnn", "--steps", "6", "--every", "2"]
    assert smoothness.main([*arguments, "--output", str(tmp_path)]) == 0
    (line,) = (tmp_path / "smoothness.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["measured_steps"] == [2, 4]
    assert entry["measured_learning_rate"] == 0.01
    ways = entry["estimates"]
    assert list(ways) == [smoothness.CONSECUTIVE, *list(ways)[1:]]
    assert len(ways) == 4
    for name, way in ways.items():
        assert len(way["validation_losses"]) == (name in smoothness.COLORS)
        assert [m["path"] for m in way["matrices"]][-2:] == ["head/bias", "head/kernel"]
        for found in way["matrices"]:
            seen, share = np.array(found["points"]["smoothness"]), share_of(name)
            h = seen * found["step"] / np.array(found["points"]["gradient"])
            # Of two points, the median is the mean; the step is the same in both.
            np.testing.assert_allclose(found["honesty"], h.mean(), rtol=2e-2)
            used = ways[smoothness.CONSECUTIVE]["matrices"]
            (whole,) = [m["step"] for m in used if m["path"] == found["path"]]
            np.testing.assert_allclose(found["step"], share * whole, rtol=2e-3)
    out = capsys.readouterr().out
    for row in ("conv1/kernel", "published radii, tuned", "one batch, 1·t"):
        assert f"| {row} " in out
    picture = tmp_path / "smoothness_cnn_seed0.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def share_of(name):
    return 1.0 if name == smoothness.CONSECUTIVE else float(name.split()[-1][:-2])


@pytest.mark.usefixtures("standard_promotion")
def test_the_task_on_text_fits_together(monkeypatch):
    corpus = text.split_text("shakespeare", "to be, or not to be: " * 300, "char")
    monkeypatch.setattr(text, "load", lambda name: corpus)
    task = smoothness_runs.on_text(seed=0)
    (first, second) = task.batches(2)
    assert first[0].shape == second[0].shape == (8, 65)
    assert not np.array_equal(first[0], second[0])
    for batch in (first, task.validation):
        assert jax.eval_shape(task.loss, task.params, *batch).shape == ()
    assert smoothness_runs.GPT.vocab_size == nanogpt.PRESETS["tiny"].vocab_size == 65


def test_the_best_of_a_sweep():
    assert smoothness_runs.best([3.0, None, 2.0, 4.0]) == 2
    with pytest.raises(ValueError, match="must have a finite one"):
        smoothness_runs.best([None])
