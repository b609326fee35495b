"""Texts in place of Shakespeare's, and what command lines refuse."""

import pytest


@pytest.fixture
def use_as_shakespeare(tmp_path, monkeypatch):
    """A function that puts a text where `DROPMUON_DATA` is looked for Shakespeare's."""

    def use(content):
        folder = tmp_path / "data" / "tinyshakespeare"
        folder.mkdir(parents=True)
        (folder / "input.txt").write_text(content)
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
