"""What the wheel holds: the package, and what the notebooks import."""

import os
import pathlib
import subprocess
import sys
import zipfile

import nbformat
import pytest

from tests.documents import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the built wheel's content, and nothing of the clone."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_it_has_one_package_and_all_its_files(site):
    (package,) = (path for path in site.iterdir() if path.suffix != ".dist-info")
    files = {path.relative_to(package) for path in package.rglob("*.py")}
    ours = {
        path.relative_to(ROOT / "dropmuon_optax")
        for path in (ROOT / "dropmuon_optax").rglob("*.py")
    }
    helpers = {
        pathlib.Path("examples") / path.relative_to(ROOT)
        for path in (ROOT / "benchmarks").rglob("*.py")
    }
    assert files == ours | helpers
    assert (package / "py.typed").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_first_cells_run_with_the_wheel_alone(path, site, tmp_path):
    """In a folder of its own, as on Colab but for what pip fetches."""
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    program = "\n".join(cell.source for cell in cells[:2]).replace("%pip", "pass  #")
    program += "\nimport benchmarks"
    program += "\nprint(dropmuon_optax.__file__, benchmarks.__file__)"
    (tmp_path / "inside").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "inside",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for file in ran.stdout.split():
        assert file.startswith(str(site)), file
