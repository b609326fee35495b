"""`python -m benchmarks.smoothness`: its record, its tables, its picture."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dropmuon_optax as dm
from benchmarks.common import data, text
from benchmarks.smoothness import __main__ as smoothness
from benchmarks.smoothness import runs


def on_a_line(seed):
    """Least squares: compiles in no time."""
    rng = np.random.default_rng(seed)
    draws = [rng.normal(size=(8, 4)).astype(np.float32) for _ in range(20)]
    loss = lambda params, x: jnp.mean((x @ params["kernel"] - x[:, :2]) ** 2)  # noqa: E731
    return runs.Task(
        name="line",
        dataset="noise",
        loss=loss,
        params={"kernel": jnp.zeros((4, 2))},
        layers=dm.layers_by_path(None, [("", dm.norms.Frobenius(), 1.0)]),
        learning_rate=0.01,
        batches=lambda num_steps: ((x,) for x in draws[:num_steps]),
        validation=(draws[-1],),
    )


def test_a_small_run_leaves_a_line_tables_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(smoothness.TASKS, "cnn", on_a_line)
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
        assert [m["path"] for m in way["matrices"]] == ["kernel"]
        for found in way["matrices"]:
            seen, share = np.array(found["points"]["smoothness"]), share_of(name)
            h = seen * found["step"] / np.array(found["points"]["gradient"])
            # Of two points, the median is the mean; the step is the same in both.
            np.testing.assert_allclose(found["honesty"], h.mean(), rtol=1e-2)
            used = ways[smoothness.CONSECUTIVE]["matrices"]
            (whole,) = [m["step"] for m in used if m["path"] == found["path"]]
            np.testing.assert_allclose(found["step"], share * whole, rtol=2e-3)
    out = capsys.readouterr().out
    for row in ("kernel", "published radii", "one batch, 1·t"):
        assert f"| {row} " in out
    picture = tmp_path / "smoothness_cnn_seed0.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def share_of(name):
    return 1.0 if name == smoothness.CONSECUTIVE else float(name.split()[-1][:-2])


@pytest.mark.usefixtures("standard_promotion")  # Optax's cross-entropy
@pytest.mark.parametrize("name", runs.TASKS)
def test_the_tasks_fit_together(name, monkeypatch):
    corpus = text.split_text("shakespeare", "to be, or not to be: " * 300, "char")
    images = data.load("digits")
    monkeypatch.setattr(text, "load", lambda name: corpus)
    monkeypatch.setattr(data, "load", lambda name: images)
    task = runs.TASKS[name](seed=0)
    first, second = task.batches(2)
    shape = {"cnn": (16, 8, 8, 1), "nanogpt": (8, 65)}[name]
    assert first[0].shape == second[0].shape == shape
    assert not np.array_equal(first[0], second[0])
    for batch in (first, task.validation):
        assert jax.eval_shape(task.loss, task.params, *batch).shape == ()
    assert all(leaf.norm for leaf in jax.tree.leaves(task.layers(task.params)))


def test_the_best_of_a_sweep():
    assert runs.best([3.0, None, 2.0, 4.0]) == 2
    with pytest.raises(ValueError, match="must have a finite one"):
        runs.best([None])
