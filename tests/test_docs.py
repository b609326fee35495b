"""The pages of docs/: programs run and print what stands below them; links lead on.

The site itself is built by the gate, `mkdocs build --strict`.
"""

import doctest
import pathlib
import re

import jax
import pytest
from flax import nnx

import dropmuon_optax as dm
from tests.documents import NUM_BLOCKS, ROOT, VOCABULARY, WIDTH, blocks, reader_has

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Pages of the guide go on from a reader's own program; the others' are whole.
GUIDE = {"choosing", "drop_muon", "ef21_muon", "smoothness"}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix()
)


class Network(nnx.Module):
    """The pages' names, as a module."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        for i in range(NUM_BLOCKS):
            setattr(self, f"blocks_{i}", nnx.Linear(WIDTH, WIDTH, rngs=rngs))
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)


@pytest.fixture(autouse=True)
def users_settings():
    """JAX's own promotion of types and ranks, as users have it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@every_page
def test_programs_run_and_print_what_stands_below(page, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = reader_has() if page.stem in GUIDE else {}
    for block in blocks(page):
        # As many lines above it as on the page, so that a traceback has its numbers.
        source = "\n" * block.line + block.program
        exec(compile(source, str(page.relative_to(ROOT)), "exec"), names)
        printed = capsys.readouterr().out
        if block.output is not None:
            same = doctest.OutputChecker().check_output(block.output, printed, OPTIONS)
            assert same, f"line {block.line} prints:\n{printed}"


@every_page
def test_links_are_there(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / link).exists(), link


def public_names():
    """`dm.muon`, `dm.norms.Spectral`, …: all that the front door has."""
    namespaces = ("norms", "linalg", "samplings", "compressors")
    here = {n for n in dm.__all__ if n not in (*namespaces, "__version__")}
    for namespace in namespaces:
        found = getattr(dm, namespace).__all__
        here |= {f"{namespace}.{n}" for n in found if n not in here}
    return here


def test_every_public_name_is_in_the_reference_once():
    pages = "\n".join(p.read_text() for p in (DOCS / "reference").glob("*.md"))
    named = re.findall(r"^::: dropmuon_optax\.([\w.]+)$", pages, re.MULTILINE)
    assert len(named) == len(set(named))
    assert set(named) == public_names()


def test_the_front_pages_are_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
    assert pathlib.Path(DOCS / "recipes" / "index.md").exists()
