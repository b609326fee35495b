"""Commands that pages and docstrings print are read by the programs they name."""

import ast
import importlib
import itertools
import pathlib
import re
import shlex
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
PAGES = [ROOT / "README.md", *sorted(BENCHMARKS.rglob("README.md"))]
PAGES += [
    p
    for p in sorted((ROOT / "docs").rglob("*.md"))
    if "python -m benchmarks" in p.read_text()
]
MODULES = sorted(BENCHMARKS.rglob("*.py"))

# A command ends with its line, but that of a code span goes on to the closing mark, and
# that of a docstring with the options that the next lines have in brackets.
PROGRAM = r"python -m\s+(benchmarks[\w.]*)"
SPAN = re.compile(r"`([^`]+)`")
IN_SPAN = re.compile(rf"{PROGRAM}([^`]*)")
LINE = re.compile(rf"{PROGRAM}([^\n`]*(?:\n\s+\[[^\n]*)*)")


def commands(text):
    """(module, options as printed) of each command in a text."""
    text = text.replace("```", "")
    spans = [found for span in SPAN.findall(text) for found in IN_SPAN.findall(span)]
    return [*spans, *LINE.findall(SPAN.sub("", text))]


def readings(printed):
    """Argument lists: brackets are left out, and each of `a|b` is tried."""
    words = shlex.split(printed.translate(str.maketrans("", "", "[]…")), comments=True)
    return itertools.product(*(word.split("|") for word in words))


def parser_of(name):
    """The function that reads the command line of `python -m name`."""
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    return sys.modules[module.main.__module__].parse


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Folders that options name are made when they are read."""
    monkeypatch.chdir(tmp_path)


def check(text):
    """The number of a text's commands, each of them read."""
    found = commands(text)
    for name, printed in found:
        for arguments in readings(printed):
            try:
                parser_of(name)(list(arguments))
            except SystemExit as refusal:
                pytest.fail(f"{name} {printed.strip()}: refused ({refusal})")
    return len(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_pages_are_read(page):
    printed = len(re.findall(PROGRAM, page.read_text()))
    assert check(page.read_text()) == printed > 0


def test_commands_of_docstrings_are_read():
    docstrings = [ast.get_docstring(ast.parse(path.read_text())) for path in MODULES]
    assert sum(check(text or "") for text in docstrings) >= 15


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_programs_say_how_they_are_run(path):
    """A module that can be run names itself in a command of its docstring."""
    source = path.read_text()
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__main__")
    text = ast.get_docstring(ast.parse(source)) or ""
    if 'if __name__ == "__main__"' in source:
        assert name in {module for module, _ in commands(text)}


def test_the_readings_of_a_command():
    text = "Command: python -m benchmarks.x [--a b|c]\n    [--d 1 …]\nDevice: any"
    ((name, printed),) = commands(text)
    assert name == "benchmarks.x"
    expected = [("--a", "b", "--d", "1"), ("--a", "c", "--d", "1")]
    assert list(readings(printed)) == expected
    assert commands("see `taskset -c 0 python -m\nbenchmarks.y --e` for") == [
        ("benchmarks.y", " --e")
    ]
