"""Damaged checkpoints: the newest whole one is taken, and what was skipped is said."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.language import checkpoints
from benchmarks.language.checkpoints import Store

SETTINGS = {"data": "text", "steps": 4}


def state(value):
    return {"w": jnp.full((64, 8), value, jnp.float32), "count": jnp.int32(value)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("run") / "kept"
    store = Store(folder, SETTINGS)
    for step in (0, 2, 4):
        store.save(step, state(step), [{"step": step}])
    store.close()
    return folder


@pytest.fixture
def kept(written, tmp_path):
    return shutil.copytree(written, tmp_path / "kept")


def restored(folder):
    store = Store(folder, SETTINGS)
    found = store.restore(state(0))
    store.close()
    return found


def files(folder):
    """Every file of a checkpoint but its digests, and these."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert found
    return found


def largest(checkpoint):
    return max(files(checkpoint / "state"), key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def empty(path):
    path.write_bytes(b"")


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


ON_FILES = [flip, halve, zero, empty, grow, lambda path: path.unlink()]
PLACES = {
    "data": largest,
    "metadata": lambda c: c / "state" / "_METADATA",
    "manifest": lambda c: c / "state" / "manifest.ocdbt",
    "notes": lambda c: c / checkpoints.NOTES,
    "digests": lambda c: c / checkpoints.DIGESTS,
}


def replace_by_empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def replace_by_file(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.write_text("no folder")


def without_state(checkpoint):
    shutil.rmtree(checkpoint / "state")


def without_notes(checkpoint):
    shutil.rmtree(checkpoint / "notes")


ON_FOLDERS = [replace_by_empty, replace_by_file, without_state, without_notes]


def check_fallback(kept, capsys, before):
    found, history = restored(kept)
    np.testing.assert_array_equal(found["w"], state(2)["w"])
    assert history == [{"step": 2}]
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if "skipped" in line
    ]
    assert line.startswith("skipped checkpoint 4: ")
    aside = kept / "4.damaged1"
    assert aside.exists()  # what was damaged is there, as it was
    if aside.is_dir():
        assert {p.name: p.read_bytes() for p in aside.rglob("*") if p.is_file()} == (
            before
        )
    store = Store(kept, SETTINGS)  # and the run goes on over the same steps
    store.restore(state(0))
    store.save(4, state(4), [{"step": 4}])
    store.close()
    assert restored(kept)[1] == [{"step": 4}]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", ON_FILES)
def test_a_damaged_file_is_noticed_and_the_one_before_taken(
    kept, capsys, change, place
):
    change(PLACES[place](kept / "4"))
    before = {p.name: p.read_bytes() for p in (kept / "4").rglob("*") if p.is_file()}
    check_fallback(kept, capsys, before)


@pytest.mark.parametrize("change", ON_FOLDERS)
def test_a_damaged_folder_is_noticed(kept, capsys, change):
    change(kept / "4")
    found = (kept / "4").rglob("*")
    check_fallback(kept, capsys, {p.name: p.read_bytes() for p in found if p.is_file()})


def test_an_empty_folder_beside_them_is_skipped(kept, capsys):
    (kept / "999").mkdir()
    assert restored(kept)[1] == [{"step": 4}]
    assert "skipped checkpoint 999" in capsys.readouterr().err


def test_one_flipped_byte_anywhere_is_noticed(kept):
    for path in files(kept / "4"):
        content = path.read_bytes()
        if content:
            flip(path)
            assert checkpoints.damage(kept / "4"), path
            path.write_bytes(content)
    assert checkpoints.damage(kept / "4") is None


def test_where_none_is_whole_one_line_names_the_folder(kept):
    flip(largest(kept / "2"))
    empty(kept / "4" / checkpoints.NOTES)
    with pytest.raises(ValueError, match=r"must hold a whole checkpoint, got") as error:
        restored(kept)
    message = str(error.value)
    assert str(kept) in message
    assert "\n" not in message
    assert {path.name for path in kept.iterdir()} == {"2", "4"}


def test_an_empty_folder_has_none(tmp_path):
    assert restored(tmp_path / "new") is None


def test_other_settings_are_refused_and_nothing_is_moved(kept):
    (kept / "999").mkdir()
    with pytest.raises(ValueError, match=r"run with {'steps': 5}, got one with"):
        Store(kept, {**SETTINGS, "steps": 5}).restore(state(0))
    assert (kept / "999").is_dir()


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_no_folder_is_refused(tmp_path, inside):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValueError, match="must be a folder that can be written to"):
        Store(path / "kept" if inside else path, SETTINGS)


def test_a_full_disk_leaves_the_last_one_whole(kept, monkeypatch):
    def full(checkpoint):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_digests", full)
    store = Store(kept, SETTINGS)
    with pytest.raises(OSError, match=r"checkpoint 6 could not be .* No space left"):
        store.save(6, state(6), [])
    store.close()
    assert restored(kept)[1] == [{"step": 4}]


def test_notes_are_plain_json(kept):
    notes = json.loads((kept / "4" / checkpoints.NOTES).read_text())
    assert notes["settings"] == SETTINGS
    assert jax.tree.leaves(notes["history"]) == [4]
