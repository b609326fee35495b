"""`python -m benchmarks.oracle`: its record, its table, its picture."""

import json

import jax
import numpy as np
import pytest

from benchmarks.oracle import __main__ as oracle
from benchmarks.oracle import trees


def test_a_small_run_leaves_lines_a_table_and_a_picture(tmp_path, capsys):
    names = ["tiny", "tiny, stacked"]
    with jax.numpy_dtype_promotion("standard"):  # as in the command line
        assert oracle.main(["--trees", *names, "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "oracle.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["tree"] for entry in entries] == names
    for entry in entries:
        assert list(entry["optimizers"]) == list(trees.OPTIMIZERS)
        base = entry["optimizers"]["optax.contrib.muon"]
        assert base["update_time_ratio"]["median"] == 1.0
        for name in ("ours", "ours, plain form"):
            found = entry["optimizers"][name]
            assert found["compile_time_s"] > 0
            # The same polynomial of the same matrices, in float32.
            error = base["orthogonality_error"]
            np.testing.assert_allclose(found["orthogonality_error"], error, rtol=1e-3)
    assert (tmp_path / "oracle.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    for row in oracle.table(entries).splitlines()[2:]:
        assert row.split("|")[1].strip() in printed


def test_the_error_is_that_of_the_singular_values():
    rng = np.random.default_rng(0)
    params = {"a": np.zeros((4, 6), "float32"), "b": np.zeros((3, 6, 4), "float32")}
    sigma = np.array([1.0, 0.5, 1.2, 0.9])
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (4, 6))
    step = trees.LEARNING_RATE * (u * sigma) @ v[:4]
    scaled = {"a": (6 / 4) ** 0.5 * step, "b": np.stack([step.T] * 3)}
    expected = np.sqrt(np.mean((sigma**2 - 1) ** 2))
    found = oracle.orthogonality_error(trees.Tree(params, False, 1), scaled)
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_is_moved_by_muon_is_the_same_in_both():
    tree = trees.Tree(jax.tree.map(np.zeros, trees.resnet18(), is_leaf=is_shape), 0, 1)
    for make in (trees.ours, trees.optax_muon):
        state = jax.eval_shape(make(tree).init, tree.params)
        text = jax.tree_util.tree_flatten_with_path(state)[0]
        moments = [path for path, leaf in text if leaf.ndim == 4]
        assert len(moments) == 20  # one buffer a kernel, where Adam has two


def is_shape(x):
    return isinstance(x, tuple)
