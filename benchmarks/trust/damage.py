"""Data files that are missing, cut, or something else: what `DROPMUON_DATA` may hold.

Each fault says what files there are instead of those that were meant. A file without
bytes is a folder of that name.
"""

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.common.sources import CIFAR10_RECORD
from benchmarks.common.text_files import (
    END_OF_TEXT,
    GPT2_VOCAB_SIZE,
    MIN_TOKENS,
    SHARD_MAGIC,
    SHARD_VERSION,
)

Files = Mapping[str, bytes | None]  # by path in the folder; None: a folder

TEXT = b"abcdefghij" * 500
TOKENS = np.array([END_OF_TEXT, *[7] * MIN_TOKENS], "<u2").tobytes()
LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 1, 200])  # IDX: one label, which is no class


def own(content: bytes | None) -> Files:
    """A text of one's own."""
    return {"text/input.txt": content}


def shakespeare(content: bytes) -> Files:
    """In place of the official file."""
    return {"tinyshakespeare/input.txt": content}


def wiki(content: bytes) -> Files:
    """Token files, both alike."""
    return {f"wiki_en_2015/{name}.bin": content for name in ("train", "val")}


def fineweb(magic: int, version: int, count: int, tokens: bytes) -> Files:
    """Token shards, both alike."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, count
    names = "fineweb_train_000001.bin", "fineweb_val_000000.bin"
    return {f"fineweb10B/{name}": header.tobytes() + tokens for name in names}


def mnist(content: bytes) -> Files:
    """All four files, alike."""
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in KINDS]
    return {f"mnist/{name}-ubyte.gz": content for name in names}


def cifar10(content: bytes) -> Files:
    """All six files, alike."""
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return {f"cifar-10-batches-bin/{name}": content for name in names}


KINDS = ("images-idx3", "labels-idx1")
NONE = "no file"
FAULTS: Mapping[str, Files] = {
    "": own(TEXT),
    NONE: {},
    "text: empty": own(b""),
    "text: not UTF-8": own(b"\xff\xfe" + TEXT),
    "text: UTF-8 cut inside a character": own(TEXT + "€".encode()[:2]),
    "text: 3 bytes": own(b"abc"),
    "text: one character": own(b"a"),
    "text: a folder": own(None),
    "text: NUL bytes": own(bytes(5000)),
    "Shakespeare: another text": shakespeare(TEXT),
    "Shakespeare: 1000 bytes": shakespeare(TEXT[:1000]),
    "Shakespeare: empty": shakespeare(b""),
    "wiki: empty": wiki(b""),
    "wiki: an odd number of bytes": wiki(TOKENS + b"\0"),
    "wiki: 1000 bytes": wiki(TOKENS[:1000]),
    "wiki: text": wiki(TEXT * 2),
    "wiki: a token that is none": wiki(
        TOKENS + np.array([GPT2_VOCAB_SIZE], "<u2").tobytes()
    ),
    "wiki: no val.bin": {"wiki_en_2015/train.bin": TOKENS},
    "fineweb: another magic number": fineweb(1, SHARD_VERSION, 2, b"1234"),
    "fineweb: another version": fineweb(SHARD_MAGIC, 9, 2, b"1234"),
    "fineweb: cut": fineweb(SHARD_MAGIC, SHARD_VERSION, 3, b"1234"),
    "fineweb: a header alone": fineweb(SHARD_MAGIC, SHARD_VERSION, 0, b""),
    "fineweb: empty": {f"fineweb10B/fineweb_{x}_0.bin": b"" for x in ("train", "val")},
    "gpt2: another encoding": {
        **own(TEXT), "gpt2/encoder.json": b"{}", "gpt2/vocab.bpe": b"a b\n",
    },
    "mnist: cut": mnist(gzip.compress(bytes(1000))[:-9]),
    "mnist: empty": mnist(b""),
    "mnist: not gzip": mnist(TEXT),
    "mnist: labels alone": mnist(gzip.compress(LABELS)),
    "cifar10: cut": cifar10(bytes(CIFAR10_RECORD)),
    "cifar10: empty": cifar10(b""),
    "cifar10: labels that are none": cifar10(bytes([77]) * (10_000 * CIFAR10_RECORD)),
    "a run's checkpoints": {
        **own(TEXT), "used/dense/2/state": b"", "used/2/state": b"",
    },
}  # fmt: skip


def lay(fault: str, folder: Path) -> None:
    """Writes the files of a fault."""
    folder.mkdir(parents=True)
    for name, content in FAULTS[fault].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
