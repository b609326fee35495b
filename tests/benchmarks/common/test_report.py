"""Tables and pictures; the examples in all benchmark files."""

import doctest
import importlib
import pkgutil

import pytest

import benchmarks
from benchmarks.common import report


def test_columns_are_aligned():
    lines = report.format_table(["a", "bb"], [["long name", "1"], ["x", "12345"]])
    assert lines.splitlines() == [
        "| a         |    bb |",
        "| :-------- | ----: |",
        "| long name |     1 |",
        "| x         | 12345 |",
    ]


def test_a_table_without_rows_is_its_header():
    assert report.format_table(["a", "bb"], []) == "| a | bb |\n| : | -: |"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        report.format_table(["a", "b"], [["1"]])


def entry(name, accuracies):
    points = [
        {
            "step": 10 * i,
            "train_time_s": 0.5 * i,
            "train_accuracy": accuracy,
            "validation_accuracy": accuracy,
        }
        for i, accuracy in enumerate(accuracies)
    ]
    return {"optimizer": name, "history": points}


def test_the_picture_is_a_png(tmp_path):
    path = tmp_path / "new" / "accuracy.png"
    entries = [entry("muon", [0.1, 0.9, 0.99]), entry("adamw", [0.1, 0.8, 0.97])]
    report.plot_accuracy(path, entries, "title", target=0.95)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("end", "target", "lowest"), [(0.99, 0.9, 0.75), (0.7, 0.9, 0.68), (0.1, 0.5, 0)]
)
def test_the_axis_starts_below_the_target_and_every_end(end, target, lowest):
    entries = [entry("muon", [0.05, end]), entry("adamw", [0.05, 1.0])]
    assert report.lowest(entries, target) == pytest.approx(lowest)


MODULES = [
    module.name for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
