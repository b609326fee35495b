"""Where the repository is: said in one place, written wherever it stands."""

import importlib.util
import shutil

import pytest

import dropmuon_optax as dm
from tests.documents import ROOT

URL = "https://github.com/somebody/dropmuon_optax"
FILES = ["README.md", "CITATION.cff", "pyproject.toml", "notebooks"]


def script():
    """`.ci/repository.py`."""
    path = ROOT / ".ci" / "repository.py"
    spec = importlib.util.spec_from_file_location("repository", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clone(tmp_path):
    for name in FILES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    return tmp_path


def name_it(clone, url):
    project = clone / "pyproject.toml"
    section, line = "[project.urls]\n", f'"Repository" = "{url}"\n'
    project.write_text(project.read_text().replace(section, section + line))


def contents(clone):
    return {
        path.relative_to(clone): path.read_text()
        for path in clone.rglob("*")
        if path.is_file()
    }


def test_what_is_committed_is_what_the_script_writes():
    assert script().main(["--check"]) == 0


def test_nobody_else_names_it():
    pages = [ROOT / "README.md", *ROOT.glob("notebooks/*"), *ROOT.glob("docs/*.md")]
    for path in pages:
        text = path.read_text()
        assert "OWNER" not in text, path
        if script().address(ROOT) is None:
            assert "/dropmuon_optax/blob/" not in text, path
            assert "badge.svg" not in text, path


def test_once_named_it_stands_everywhere_and_can_be_taken_back(clone, capsys):
    before = contents(clone)
    name_it(clone, URL)
    assert script().main(["--check"], clone) == 1
    assert script().main([], clone) == 0
    assert script().main(["--check"], clone) == 0
    after = contents(clone)
    for path in (p for p in before if p.suffix != ".toml"):
        assert URL.removeprefix("https://github.com") in after[path], path
    for path in clone.glob("notebooks/*.ipynb"):
        badge = f"/github/somebody/dropmuon_optax/blob/main/notebooks/{path.name})"
        assert badge in path.read_text()
        assert f"dropmuon-optax[bench] @ git+{URL}" in path.read_text()
    (clone / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    assert script().main([], clone) == 0
    assert contents(clone) == before


@pytest.mark.parametrize(
    "url", ["https://example.org/x/y", "github.com/x/y", f"{URL}/tree"]
)
def test_other_addresses_are_refused(url, clone):
    name_it(clone, url)
    with pytest.raises(ValueError, match="`Repository` must be https"):
        script().main([], clone)


def test_the_version_is_said_in_one_place():
    assert f"version: {dm.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
