"""Text as token ids, and the batches that training reads.

    shakespeare   1.1 MB by Shakespeare; the first 90 % train, the rest validates, as in
                  nanoGPT. By characters (65 of them), or by GPT-2's encoding.
    text          a text of your own, split likewise.
    project       this package's own source: nothing is downloaded.
    wiki          English Wikipedia of May 2015, a sample of 21.7 million tokens.
    c4            the opening of C4 (en) 3.1.0: 0.44 million tokens.
    fineweb       FineWeb-10B, in the token shards that modded-nanogpt trains on.

`benchmarks/common/text_files.py` says where their files come from.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from benchmarks.common import text_files
from benchmarks.common.sources import find_file
from benchmarks.common.text_files import (
    GPT2_VOCAB_SIZE,
    TOKEN,
    Tokens,
    decode_gpt2,
    encode_gpt2,
    find_own,
    read_text,
)

TOKENIZERS = ("char", "gpt2")
CHARACTERS = ("shakespeare", "text", "project")  # read by characters unless told
DATASETS = (*CHARACTERS, *text_files.TOKEN_FOLDERS, "fineweb")
TRAIN_SHARE = 0.9  # of Shakespeare, as in nanoGPT

Shards = tuple[Tokens, ...]


class Corpus(NamedTuple):
    """Token ids of a text, and how to read and write them."""

    name: str
    tokenizer: str
    vocab_size: int  # every id is below
    train: Shards
    validation: Shards
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


def load(name: str, tokenizer: str | None = None) -> Corpus:
    """Loads one of `DATASETS`.

    Args:
        name: The data set.
        tokenizer: One of `TOKENIZERS`; None is "char" for Shakespeare, a text of
            your own and the project's, and "gpt2" for the others, which have no other.

    Raises:
        ValueError: If a name is unknown, or a file is not what it should be.
        FileNotFoundError: If a file is neither on disk nor to be had by network; the
            message says where to put it.
    """
    if name not in DATASETS:
        raise ValueError(f"`name` must be one of {', '.join(DATASETS)}, got {name!r}")
    known = TOKENIZERS if name in CHARACTERS else ("gpt2",)
    tokenizer = tokenizer or known[0]
    if tokenizer not in known:
        raise ValueError(
            f"`tokenizer` of {name} must be one of {', '.join(known)}, "
            f"got {tokenizer!r}"
        )
    if name == "project":
        return split_text(name, text_files.read_project(), tokenizer)
    if name in CHARACTERS:
        own = name == "text"
        path = find_own() if own else find_file(text_files.SHAKESPEARE, "input.txt")
        return split_text(name, read_text(path), tokenizer)
    if name == "fineweb":
        paths = [text_files.find_shards(part) for part in ("train", "val")]
        train, validation = (tuple(map(text_files.open_shard, p)) for p in paths)
    else:
        files = [text_files.find_tokens(name, f) for f in ("train.bin", "val.bin")]
        train, validation = ((text_files.open_tokens(file),) for file in files)
    return Corpus(
        name, tokenizer, GPT2_VOCAB_SIZE, train, validation, encode_gpt2, decode_gpt2
    )


def at_hand() -> str:
    """Shakespeare, or the project's text where that can't be had, which is said."""
    try:
        find_file(text_files.SHAKESPEARE, "input.txt")
    except FileNotFoundError as error:
        print(
            f"Shakespeare can't be had, so this is the project's own source ({error})",
            file=sys.stderr,
        )
        return "project"
    return "shakespeare"


def split_text(name: str, text: str, tokenizer: str) -> Corpus:
    """A corpus of one text: its first 90 % train, the rest validates.

    Raises:
        ValueError: If the tokenizer is unknown.
    """
    if tokenizer == "char":
        characters = sorted(set(text))
        ids = {character: i for i, character in enumerate(characters)}
        vocab_size = len(characters)
        encode = partial(encode_characters, ids)
        decode = partial(decode_characters, characters)
    elif tokenizer == "gpt2":
        vocab_size, encode, decode = GPT2_VOCAB_SIZE, encode_gpt2, decode_gpt2
    else:
        raise ValueError(
            f"`tokenizer` must be one of {', '.join(TOKENIZERS)}, got {tokenizer!r}"
        )
    cut = int(TRAIN_SHARE * len(text))
    train, validation = (
        (np.array(encode(part), TOKEN),) for part in (text[:cut], text[cut:])
    )
    return Corpus(name, tokenizer, vocab_size, train, validation, encode, decode)


# ------------------------------------------------------------------------- batches


def batch(
    shards: Shards,
    batch_size: int,
    length: int,
    *,
    seed: int,
    step: int,
    host: int = 0,
    num_hosts: int = 1,
) -> Int[np.ndarray, "B T+1"]:
    """The windows of a step: a pure function of the arguments, so runs can be resumed.

    The `batch_size` windows of all hosts depend on (seed, step) alone; host h gets the
    h-th of `num_hosts` equal parts. Windows start anywhere, with equal probability.

    Args:
        shards: Token ids; a window lies in one shard.
        batch_size: Of all hosts together.
        length: T; a window is one longer, for inputs [:, :-1] and targets [:, 1:].
        seed: Of the order of batches.
        step: Whose batch it is, from 0.
        host: Which part.
        num_hosts: How many parts.

    Returns:
        Windows of int32 tokens, (batch_size / num_hosts, length + 1).

    Raises:
        ValueError: If hosts can't share a batch, or no shard is as long as a window.
    """
    if num_hosts < 1 or not 0 <= host < num_hosts:
        raise ValueError(f"`host` must be in 0, …, {num_hosts - 1}, got {host}")
    if batch_size < 1 or batch_size % num_hosts:
        raise ValueError(
            f"`batch_size` must be a positive multiple of the {num_hosts} hosts, "
            f"got {batch_size}"
        )
    ends = np.cumsum(num_starts(shards, length))
    starts = np.random.default_rng([seed, step]).integers(0, ends[-1], batch_size)
    share = batch_size // num_hosts
    return windows(shards, length, starts[host * share : (host + 1) * share])


def validation_batch(
    shards: Shards, num_windows: int, length: int
) -> Int[np.ndarray, "B T+1"]:
    """Windows evenly spread over the shards, always the same; all if fewer fit.

    They share no target: each starts at least `length` after the one before.

    Raises:
        ValueError: If no shard is as long as a window, or `num_windows` is below 1.
    """
    if num_windows < 1:
        raise ValueError(f"`num_windows` must be at least 1, got {num_windows}")
    counts = num_starts(shards, length)
    offsets = np.cumsum(counts) - counts
    parts = zip(offsets, counts, strict=True)
    places = np.concatenate([first + np.arange(0, n, length) for first, n in parts])
    num_chosen = min(num_windows, len(places))
    chosen = np.arange(num_chosen) * len(places) // num_chosen
    return windows(shards, length, places[chosen])


def num_starts(shards: Shards, length: int) -> Int[np.ndarray, " S"]:
    """In how many places a window of `length` + 1 tokens can start, by shard.

    Raises:
        ValueError: If in none.
    """
    counts = np.array([max(0, len(shard) - length) for shard in shards], np.int64)
    if length < 1 or not counts.sum():
        longest = max(map(len, shards), default=0)
        if longest < 2:
            raise ValueError(
                "`shards` must have one of at least 2 tokens, got none longer than "
                f"{longest}: the text is too short"
            )
        raise ValueError(
            f"`length` must be between 1 and {longest - 1} (the longest shard has "
            f"{longest} tokens), got {length}"
        )
    return counts


def windows(
    shards: Shards, length: int, starts: Int[np.ndarray, " B"]
) -> Int[np.ndarray, "B T+1"]:
    """The windows at these places, counted over all shards as `num_starts` counts."""
    ends = np.cumsum(num_starts(shards, length))
    rows = []
    for start, shard in zip(
        starts, np.searchsorted(ends, starts, "right"), strict=True
    ):
        first = start - (ends[shard - 1] if shard else 0)
        rows.append(shards[shard][first : first + length + 1])
    return np.stack(rows).astype(np.int32)


# ----------------------------------------------------------------------- characters


def encode_characters(ids: dict[str, int], text: str) -> list[int]:
    """Ids of characters; ValueError for one that the corpus has not."""
    unknown = sorted(set(text) - set(ids))
    if unknown:
        raise ValueError(f"`text` must have characters of the corpus, got {unknown}")
    return [ids[character] for character in text]


def decode_characters(characters: Sequence[str], tokens: Sequence[int]) -> str:
    """The text of ids of characters."""
    return "".join(characters[token] for token in tokens)
