"""Notebooks run top to bottom in a fresh kernel, and are fit to be read and opened."""

import ast
import json
import os
import pathlib

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient

from tests.conftest import CACHE

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = ("01_norms_and_oracles", "02_drop_muon_cnn", "03_ef21_muon_nanogpt")
MAX_BYTES, MAX_LINES, TIMEOUT_S = 500_000, 10, 240

every_notebook = pytest.mark.parametrize("name", NAMES)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    """The cells of code as plain Python."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [
        "\n".join(
            f"{line[: len(line) - len(line.lstrip())]}pass"
            if line.lstrip().startswith(("!", "%"))
            else line
            for line in source.splitlines()
        )
        for source in sources
    ]


def test_there_are_no_others():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@every_notebook
@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.filterwarnings("default")  # of the client; the kernel has its own
def test_it_runs(name, tmp_path, monkeypatch):
    """In fast mode, on a CPU, without data and so without a network."""
    (tmp_path / "data").mkdir()
    kernel = tmp_path / "share" / "kernels" / "python3"
    write_kernel_spec(str(kernel))  # this Python, whichever kernels the machine knows
    settings = {
        "DROPMUON_FAST": "1",
        "DROPMUON_DATA": str(tmp_path / "data"),
        "JUPYTER_PATH": str(tmp_path / "share"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # One device, as where they are read; what else conftest set stays.
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace(
            "device_count=8", "device_count=1"
        ),
    }
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    client = NotebookClient(
        read(name),
        timeout=TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()  # raises what a cell raises


@every_notebook
def test_no_function_is_long(name):
    functions = [
        node
        for source in code(read(name))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    assert functions
    for node in functions:
        assert node.end_lineno - node.lineno < MAX_LINES, node.name


@every_notebook
def test_it_ends_with_assertions(name):
    last = ast.parse(code(read(name))[-1])
    assert sum(isinstance(node, ast.Assert) for node in ast.walk(last)) >= 3


@every_notebook
def test_it_installs_from_pypi_on_colab_alone(name):
    install = read(name).cells[1].source
    before, _, inside = install.partition('if "google.colab" in sys.modules:\n')
    assert '%pip install --quiet "dropmuon-optax[bench]" ' in inside
    assert "pip" not in before


@every_notebook
def test_outputs_are_committed_and_small(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MAX_BYTES
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output.output_type != "error" for output in outputs)
    assert cells[-1].outputs


@every_notebook
def test_it_tells_nothing_of_the_machine(name):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        outputs = json.dumps(
            [
                {k: v for k, v in o.items() if k != "data"}
                for o in cell.get("outputs", [])
            ]
        )
        assert str(pathlib.Path.home()) not in outputs
