"""`python -m benchmarks.oracle`: its record, its table, its picture."""

import json

import jax
import numpy as np
import pytest

from benchmarks.oracle import __main__ as oracle
from benchmarks.oracle import trees

OPTAX, FOUR = "optax.contrib.muon", "4 steps, Schatten"
SAME = {
    "ours": OPTAX,
    "ours, plain form": OPTAX,
    "ours, bfloat16 momentum": OPTAX,
    f"ours, {FOUR}": f"{OPTAX}, our 4 steps",
}


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
        # Of one name, the same polynomial of the same matrices, in float32.
        for name, other in SAME.items():
            found, peer = (entry["optimizers"][n] for n in (name, other))
            assert found["compile_time_s"] > 0
            error = peer["orthogonality_error"]
            np.testing.assert_allclose(found["orthogonality_error"], error, rtol=1e-3)
        halved = entry["optimizers"]["ours, bfloat16 momentum"]["state_bytes"]
        assert halved < 0.6 * base["state_bytes"]
    assert (tmp_path / "oracle.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    for row in oracle.table(entries).splitlines()[2:]:
        assert row.split("|")[1].strip() in printed


def test_a_choice_of_optimizers_is_compared_with_optax(tmp_path):
    arguments = ["--trees", "tiny", "--optimizers", "ours", "--output", str(tmp_path)]
    with jax.numpy_dtype_promotion("standard"):
        assert oracle.main(arguments) == 0
    entry = json.loads((tmp_path / "oracle.jsonl").read_text())
    assert list(entry["optimizers"]) == [OPTAX, "ours"]


def test_the_products_are_counted_by_the_sides():
    tree = trees.Tree(
        {"a": np.zeros((4, 4)), "b": np.zeros((3, 8, 4)), "head": np.zeros((4, 4))},
        True,
        1,
    )
    plain = 2 * 5 * (3 * 4**3 + 3 * (2 * 4**2 * 8 + 4**3))
    assert trees.num_flops(tree, OPTAX) == plain
    gram = 2 * (4 * 3 * 4**3 + 3 * (4 * 4**2 * 8 + 10 * 4**3))
    assert trees.num_flops(tree, f"ours, {FOUR}") == gram
    assert trees.num_flops(tree, "optax.adamw") is None


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
