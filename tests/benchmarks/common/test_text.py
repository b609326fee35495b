"""Texts: official files, others that are refused, and the order of batches."""

import os
import pathlib
import struct

import numpy as np
import pytest

from benchmarks.common import text, text_files

# Vocabulary, tokens to train on and to validate on.
# nanoGPT's counts for Shakespeare: data/shakespeare{,_char}/readme.md.
COUNTS = {
    ("shakespeare", "char"): (65, 1_003_854, 111_540),
    ("shakespeare", "gpt2"): (50_257, 301_966, 36_059),
    ("wiki", None): (50_257, 21_663_855, 1_087_817),
    ("c4", None): (50_257, 443_918, 81_276),
}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DROPMUON_DATA", str(tmp_path))
    monkeypatch.setattr(text_files, "MIN_TOKENS", 2)
    return tmp_path


def numbered(*sizes):
    """Shards whose tokens are their own places, counted over all of them."""
    ends = np.cumsum(sizes)
    return tuple(
        np.arange(end - size, end, dtype=np.uint16)
        for size, end in zip(sizes, ends, strict=True)
    )


def shard_bytes(tokens, magic=20240520, version=1, count=None):
    count = len(tokens) if count is None else count
    header = struct.pack("<3i", magic, version, count) + bytes(4 * 253)
    return header + struct.pack(f"<{len(tokens)}H", *tokens)


# ------------------------------------------------------------------------- batches


def test_windows_are_of_the_text():
    rows = text.batch(numbered(1000), 16, 10, seed=0, step=0)
    assert rows.shape == (16, 11)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)


def test_a_batch_is_a_function_of_seed_and_step():
    def rows(**kwargs):
        return text.batch(numbered(1000), 8, 10, **kwargs)

    np.testing.assert_array_equal(rows(seed=1, step=5), rows(seed=1, step=5))
    assert np.any(rows(seed=1, step=5) != rows(seed=1, step=6))
    assert np.any(rows(seed=1, step=5) != rows(seed=2, step=5))


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_hosts_share_one_batch(num_hosts):
    shards = numbered(300, 20, 500)
    whole = text.batch(shards, 8, 10, seed=3, step=7)
    parts = [
        text.batch(shards, 8, 10, seed=3, step=7, host=host, num_hosts=num_hosts)
        for host in range(num_hosts)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_windows_stay_in_their_shard_and_start_anywhere():
    shards = numbered(12, 5, 14)
    rows = text.batch(shards, 2000, 10, seed=0, step=0)
    assert set(rows[:, 0]) == {0, 1, 17, 18, 19, 20}
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)


def test_validation_windows_share_no_target():
    rows = text.validation_batch(numbered(101, 3, 51), 100, 10)
    targets = rows[:, 1:].ravel()
    assert sorted(set(targets)) == sorted(targets)
    assert len(rows) == 15  # ten in the first shard, five in the last
    few = text.validation_batch(numbered(101, 3, 51), 5, 10)
    assert set(few[:, 0]) < set(rows[:, 0])
    assert len(few) == 5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_hosts": 2, "host": 2}, "`host` must be in 0, …, 1, got 2"),
        ({"num_hosts": 3}, "multiple of the 3 hosts, got 8"),
        ({"batch_size": 0}, "`batch_size` must be a positive"),
        ({"length": 100}, "`length` must be between 1 and 99 .* got 100"),
        ({"length": 0}, "`length` must be between"),
    ],
)
def test_impossible_batches_are_refused(change, match):
    arguments = {"batch_size": 8, "length": 10, "seed": 0, "step": 0, **change}
    with pytest.raises(ValueError, match=match):
        text.batch(numbered(100), **arguments)


def test_an_empty_validation_is_refused():
    with pytest.raises(ValueError, match="`num_windows` must be at least 1, got 0"):
        text.validation_batch(numbered(100), 0, 10)


# ------------------------------------------------------------------------ one text


def test_a_text_is_split_at_nine_tenths():
    corpus = text.split_text("some", "abcab" * 20, "char")
    assert corpus.vocab_size == 3
    assert [len(corpus.train[0]), len(corpus.validation[0])] == [90, 10]
    assert corpus.decode(corpus.train[0]) == "abcab" * 18
    assert corpus.encode("cab") == [2, 0, 1]
    with pytest.raises(ValueError, match=r"characters of the corpus, got .*'x'"):
        corpus.encode("ax")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        ValueError, match="shakespeare, text, project, wiki, c4, fineweb, got 'pile'"
    ):
        text.load("pile")
    with pytest.raises(ValueError, match="`tokenizer` of wiki must be one of gpt2"):
        text.load("wiki", "char")
    with pytest.raises(ValueError, match="must be one of char, gpt2, got 'words'"):
        text.split_text("some", "abc", "words")


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "whole uint16 tokens, got 0 bytes"),
        (b"\x50\xc4\x00", "whole uint16 tokens, got 3 bytes"),
        (b"\x01\x00\x02\x00", "must start with 50256, got 1"),
        (b"\x50\xc4\x51\xc4", "tokens below 50257, got 50257"),
    ],
)
def test_other_token_files_are_refused(folder, content, match):
    (folder / "c4_en").mkdir()
    (folder / "c4_en" / "train.bin").write_bytes(content)
    (folder / "c4_en" / "val.bin").write_bytes(b"\x50\xc4")
    with pytest.raises(ValueError, match=match):
        text.load("c4")


def test_token_files_are_read_as_written(folder, monkeypatch):
    monkeypatch.setattr(text_files, "encode_gpt2", lambda text: [*text.encode()])
    for part, documents in (("train", ["ab", "", "c"]), ("val", ["d"])):
        path = folder / "wiki_en_2015" / f"{part}.bin"
        count = text_files.write_tokens(path, documents)
        assert count == len(documents) + sum(map(len, documents))
    corpus = text.load("wiki")
    assert isinstance(corpus.train[0], np.memmap)
    assert corpus.train[0].tolist() == [50256, 97, 98, 50256, 50256, 99]
    assert corpus.validation[0].tolist() == [50256, 100]


def write_fineweb(folder, content):
    (folder / "fineweb10B").mkdir()
    (folder / "fineweb10B" / "fineweb_val_000000.bin").write_bytes(shard_bytes([7]))
    (folder / "fineweb10B" / "fineweb_train_000002.bin").write_bytes(content)
    (folder / "fineweb10B" / "fineweb_train_000001.bin").write_bytes(
        shard_bytes([50256, 4])
    )


def test_shards_are_read_in_order(folder):
    write_fineweb(folder, shard_bytes([5, 6, 50256]))
    corpus = text.load("fineweb")
    assert [shard.tolist() for shard in corpus.train] == [[50256, 4], [5, 6, 50256]]
    assert [shard.tolist() for shard in corpus.validation] == [[7]]
    assert isinstance(corpus.train[0], np.memmap)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\x00" * 100, "000002.bin must have a header of 1024 bytes, got 100"),
        (shard_bytes([1], magic=20250401), "a shard of .* got 20250401 and 1"),
        (shard_bytes([1], version=2), "got 20240520 and 2"),
        (shard_bytes([1, 2], count=3), "must have 1030 bytes .* got 1028"),
        (shard_bytes([], count=0), "must have 1024 bytes for the 0 tokens"),
    ],
)
def test_other_shards_are_refused(folder, content, match):
    write_fineweb(folder, content)
    with pytest.raises(ValueError, match=match):
        text.load("fineweb")


@pytest.mark.parametrize("name", [x for x in text.DATASETS if x != "project"])
def test_a_missing_file_is_named(folder, name):
    with pytest.raises(FileNotFoundError, match=r"is missing.* DROPMUON_DATA"):
        text.load(name)


def test_the_projects_text_needs_no_file(folder):
    corpus = text.load("project")
    (train,), (validation,) = corpus.train, corpus.validation
    written = corpus.decode([*train, *validation])
    source = pathlib.Path(text_files.dropmuon_optax.__file__).with_name("checks.py")
    assert source.read_text() in written
    assert len(written) > 200_000
    assert corpus.vocab_size == len(set(written))


@pytest.mark.parametrize("name", ["wiki", "c4", "fineweb"])
def test_what_has_no_hash_is_not_downloaded(monkeypatch, name):
    monkeypatch.delenv("DROPMUON_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"published .* it is not set"):
        text.load(name)


def test_gpt2_files_are_checked_wherever_they_are(folder):
    text_files.gpt2.cache_clear()
    (folder / "gpt2").mkdir()
    for name in text_files.GPT2_SHA256:
        (folder / "gpt2" / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match="must be the official file"):
        text_files.gpt2()


@pytest.mark.skipif(
    not os.environ.get("DROPMUON_DATA"),
    reason="needs the official files in the folder DROPMUON_DATA",
)
class TestOfficialFiles:
    @pytest.mark.parametrize(("name", "tokenizer"), COUNTS)
    def test_they_have_the_published_sizes(self, name, tokenizer):
        corpus = text.load(name, tokenizer)
        found = (corpus.vocab_size, len(corpus.train[0]), len(corpus.validation[0]))
        assert found == COUNTS[name, tokenizer]

    @pytest.mark.parametrize(("name", "tokenizer"), COUNTS)
    def test_encoding_undoes_decoding(self, name, tokenizer):
        corpus = text.load(name, tokenizer)
        (row,) = text.batch(corpus.validation, 1, 200, seed=0, step=0)
        written = corpus.decode(corpus.encode("First Citizen:\nSpeak, speak."))
        assert written == "First Citizen:\nSpeak, speak."
        assert len(corpus.decode(row)) >= 200

    def test_gpt2_ids_are_the_published_ones(self):
        assert text.encode_gpt2("hello world") == [31373, 995]  # tiktoken's README
        assert text.decode_gpt2([31373, 995, 50_300]) == "hello world"
