"""The front door: what `dir`, `help` and `import *` show is what is meant."""

import pydoc
import re
import types

import pytest

import dropmuon_optax as dm

NAMESPACES = ("norms", "samplings", "compressors", "linalg")


def test_help_lists_every_public_name_with_one_line():
    lines = re.findall(r"^    (\w+) +(\S.*)$", dm.__doc__, re.MULTILINE)
    names = [name for name, _ in lines]
    assert len(names) == len(set(names))
    assert set(names) == set(dm.__all__) - {"__version__"}
    assert all(len(line) <= 60 for _, line in lines)
    shown = pydoc.render_doc(dm, renderer=pydoc.plaintext)
    assert all(re.search(rf"^ +{name} +\S", shown, re.MULTILINE) for name in names)


def test_no_submodule_is_public_that_is_not_meant():
    modules = {n for n in dir(dm) if isinstance(getattr(dm, n), types.ModuleType)}
    assert modules == set(NAMESPACES)
    assert set(dir(dm)) == set(dm.__all__)


@pytest.mark.parametrize("name", [None, *NAMESPACES])
def test_what_is_imported_is_public(name):
    module = dm if name is None else getattr(dm, name)
    imported = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert imported == set(module.__all__) - {*NAMESPACES, "__version__"}
    assert sorted(dir(module)) == sorted(module.__all__)


def test_docstrings_refer_to_nothing_that_help_does_not_show():
    for module in (dm, *(getattr(dm, name) for name in NAMESPACES)):
        for name in module.__all__:
            text = getattr(getattr(module, name), "__doc__", "") or ""
            assert not re.search(r"box above|line \d+ above", text), name
