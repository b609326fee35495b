"""The front door: what `dir`, `help` and `import *` show is what is meant."""

import os
import pathlib
import pydoc
import re
import subprocess
import sys
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


def in_a_process(code, **variables):
    """What a program prints, in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(dm.__file__).parents[1],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    return ran.stdout


EVERY_MODULE = """
import importlib, pkgutil, sys
{before}
import dropmuon_optax
for module in pkgutil.walk_packages(dropmuon_optax.__path__, "dropmuon_optax."):
    importlib.import_module(module.name)
"""


def test_importing_touches_no_device():
    """Not even where there is none: whoever imports it may choose one after."""
    code = (
        EVERY_MODULE.format(before="")
        + """
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
    )
    assert in_a_process(code, JAX_PLATFORMS="nonsense").split() == ["False"]


EXTRAS = ("flax", "equinox", "orbax", "matplotlib", "sklearn", "torch", "tiktoken")


def test_nothing_of_the_extras_is_needed():
    blocked = f"sys.modules.update(dict.fromkeys({EXTRAS!r}))"  # their import fails
    code = (
        EVERY_MODULE.format(before=blocked)
        + """
import jax, jax.numpy as jnp
params = {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.zeros(8)}}
for tx in (dropmuon_optax.gluon(0.1), dropmuon_optax.muon(0.1)):
    updates, _ = tx.update(params, tx.init(params), params)
    print(sum(bool(jnp.any(x != 0)) for x in jax.tree.leaves(updates)))
try:
    import flax
except ImportError as error:
    print(error)
"""
    )
    *moved, error = in_a_process(code).splitlines()
    assert moved == ["1", "1"]  # the kernel; a gradient of zeros moves no bias
    assert error.startswith("import of flax halted")
