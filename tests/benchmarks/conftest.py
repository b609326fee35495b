"""Texts in place of Shakespeare's, and what command lines refuse."""

import hashlib

import pytest

from benchmarks.common import text_files


@pytest.fixture
def use_as_shakespeare(tmp_path, monkeypatch):
    """A function that puts a text where `DROPMUON_DATA` is looked for Shakespeare's.

    It is the official one for this process; others read it as `--data text`.
    """

    def use(content):
        folder = tmp_path / "data" / "tinyshakespeare"
        for name in (folder, folder.parent / "text"):
            name.mkdir(parents=True)
            (name / "input.txt").write_text(content)
        digest = hashlib.md5(content.encode()).hexdigest()
        monkeypatch.setitem(text_files.SHAKESPEARE.hashes, "input.txt", digest)
        monkeypatch.setenv("DROPMUON_DATA", str(folder.parent))

    return use


@pytest.fixture
def text(use_as_shakespeare):
    """A text in which every character is the next one's reason."""
    use_as_shakespeare("abcdefghij" * 500)


@pytest.fixture
def refusal(capsys):
    """A function: the message with which a parser refuses arguments."""

    def refusal_of(parse, arguments):
        with pytest.raises(SystemExit) as stopped:
            parse(arguments)
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return refusal_of
