"""The floor plan that CONTRIBUTING shows is the tree that lies on the disk."""

import pathlib
import re

import dropmuon_optax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "dropmuon_optax"


def modules():
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }


def test_the_floor_plan_names_every_module():
    page = (ROOT / "docs" / "CONTRIBUTING.md").read_text()
    plan = re.search(r"<!-- floor plan -->\n```text\n(.*?)```", page, re.DOTALL)
    assert plan
    named = set()
    folder = ""
    for line in plan[1].splitlines():
        # "    norms/          base  column …" or "    lmo.py          what it is"
        entry = re.match(r"\s*(\w+/|\w+\.py)\s+(.*)", line)
        if entry and entry[1].endswith("/"):
            folder = entry[1]
            words = entry[2].rpartition(": ")[2].split()
            named |= {f"{folder}{word}.py" for word in words}
        elif entry:
            named.add(entry[1])
    assert named == modules()


def test_files_are_short():
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 300
    }
    assert not long


def test_no_file_imports_the_front_door():
    for path in PACKAGE.rglob("*.py"):
        code = re.sub(r'"""(.*?)"""', "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"^\s*import dropmuon_optax\b", code, re.MULTILINE), path
        if path != PACKAGE / "__init__.py":
            assert "from __future__ import annotations" not in code


def test_public_names_have_a_docstring_with_an_example():
    for name in dir(dropmuon_optax):
        value = getattr(dropmuon_optax, name)
        is_public = not name.startswith("_") and getattr(
            value, "__module__", ""
        ).startswith("dropmuon_optax")
        if is_public and callable(value):
            assert value.__doc__, name
            assert isinstance(value, type) or ">>>" in value.__doc__, name


def test_folders_are_short():
    folders = [PACKAGE, *(path.parent for path in PACKAGE.glob("*/__init__.py"))]
    entries = {
        folder.relative_to(ROOT).as_posix(): [
            entry.name
            for entry in folder.iterdir()
            if entry.suffix == ".py" or (entry / "__init__.py").is_file()
        ]
        for folder in folders
    }
    assert len(entries.pop("dropmuon_optax")) <= 15
    assert not {name for name, inside in entries.items() if len(inside) > 14}
