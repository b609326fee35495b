"""The files of texts: finding, reading and writing them, and GPT-2's encoding.

If the environment variable `DROPMUON_DATA` names a folder, files are read there:

    tinyshakespeare/input.txt                      (the official one, by its hash)
    text/input.txt                                 (UTF-8; any text of your own)
    gpt2/encoder.json, gpt2/vocab.bpe              (to read or write GPT-2's tokens)
    wiki_en_2015/train.bin, wiki_en_2015/val.bin
    c4_en/train.bin, c4_en/val.bin
    fineweb10B/fineweb_train_000001.bin, …         (one or more)
    fineweb10B/fineweb_val_000000.bin, …           (one or more)

Otherwise Shakespeare and GPT-2's files are downloaded once, their hashes checked. The
others cannot be: no publisher has token files of wiki and c4, and nobody a list of
hashes of fineweb's, so a download could not be told from something else. They are read
from `DROPMUON_DATA` alone and accepted by their layout:

- wiki, c4: GPT-2 ids, little-endian uint16, 50256 first and between documents.
  `write_tokens` writes this from documents. A file of fewer than 4096 tokens is taken
  for what is left of one.
- fineweb: 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros),
  then the ids as above. Only header and size are checked, since a shard is large.
"""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import tiktoken
from jaxtyping import UInt16
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

import dropmuon_optax
from benchmarks.common.sources import DATA_VARIABLE, Source, find_file

GPT2_VOCAB_SIZE = 50_257
END_OF_TEXT = 50_256  # GPT-2's token between documents
TOKEN = np.dtype("<u2")  # little-endian uint16
SHARD_MAGIC, SHARD_VERSION = 20240520, 1  # modded-nanogpt, data/fineweb.py
SHARD_HEADER = np.dtype(("<i4", 256))

SHAKESPEARE = Source(
    folder="tinyshakespeare",
    address="https://raw.githubusercontent.com/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/",
    hashes={"input.txt": "6fb458f1232090904fb40fe944165e91"},
)
GPT2 = Source(
    folder="gpt2",
    address="https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/",
    hashes={
        "encoder.json": "dffec25a898b1f5e569bec4dffd7e5c0",
        "vocab.bpe": "75a37753dd7a28a2c5df80c28bf06e4e",
    },
)
GPT2_SHA256 = {  # those that tiktoken pins; checked wherever the files come from
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
MIN_TOKENS = 4096  # of a file of tokens, lest the rest of one train
TOKEN_FOLDERS = {"wiki": "wiki_en_2015", "c4": "c4_en"}
FINEWEB_FOLDER = "fineweb10B"

Tokens = UInt16[np.ndarray, " N"]  # read-only; mapped where they are a file


@cache
def gpt2() -> tiktoken.Encoding:
    """GPT-2's byte-pair encoding.

    Raises:
        ValueError: If a file has not the hash that tiktoken pins.
        FileNotFoundError: If one is neither on disk nor to be had by network.
    """
    encoder, merges = (find_file(GPT2, name) for name in ("encoder.json", "vocab.bpe"))
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(merges),
        encoder_json_file=str(encoder),
        vocab_bpe_hash=GPT2_SHA256["vocab.bpe"],
        encoder_json_hash=GPT2_SHA256["encoder.json"],
    )
    return tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=GPT2_VOCAB_SIZE,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={ENDOFTEXT: END_OF_TEXT},
    )


def encode_gpt2(text: str) -> list[int]:
    """GPT-2's ids of a text, in which special tokens are text like any other."""
    return gpt2().encode_ordinary(text)


def decode_gpt2(tokens: Sequence[int]) -> str:
    """The text of GPT-2's ids; those that only pad the vocabulary are left out."""
    known = [int(token) for token in tokens if token < GPT2_VOCAB_SIZE]
    return gpt2().decode(known)


# ---------------------------------------------------------------------------- files


def find_own() -> Path:
    """The path of a text of one's own, which `DROPMUON_DATA` must have."""
    root = os.environ.get(DATA_VARIABLE)
    path = Path(root or "") / "text" / "input.txt"
    if root and path.is_file():
        return path
    if root:
        raise FileNotFoundError(
            f"{path} is missing. {DATA_VARIABLE} is set to {root}: put your text "
            "there, in UTF-8"
        )
    raise FileNotFoundError(
        f"text/input.txt is missing: set {DATA_VARIABLE} to a folder that has your "
        "text there, in UTF-8; it is not set"
    )


def read_project() -> str:
    """The source of the package, one file after the other, as it is installed."""
    root = Path(dropmuon_optax.__file__).parent
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    own = sorted(name for name in names if name.parts[0] != "examples")
    return "\n\n".join((root / name).read_text(encoding="utf-8") for name in own)


def read_text(path: Path) -> str:
    """A text in UTF-8.

    Raises:
        ValueError: If it is none, or empty.
    """
    try:
        content = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8, got: {error}") from None
    if not content:
        raise ValueError(f"{path} must hold a text, got 0 bytes")
    return content


def find_tokens(name: str, file: str) -> Path:
    """The path of a token file of wiki or c4, which `DROPMUON_DATA` must have."""
    folder = TOKEN_FOLDERS[name]
    root = os.environ.get(DATA_VARIABLE)
    if root and (path := Path(root) / folder / file).is_file():
        return path
    raise FileNotFoundError(
        f"{folder}/{file} is missing, and there is no published token file of {name} "
        f"to download: set {DATA_VARIABLE} to a folder that has it (GPT-2 ids, "
        f"little-endian uint16, {END_OF_TEXT} before each document; "
        "`benchmarks.common.text_files.write_tokens` writes it); "
        f"it is {root or 'not set'}"
    )


def find_shards(part: str) -> list[Path]:
    """The paths of fineweb's shards, `train` or `val`, in `DROPMUON_DATA`."""
    root, pattern = os.environ.get(DATA_VARIABLE), f"fineweb_{part}_*.bin"
    paths = sorted((Path(root) / FINEWEB_FOLDER).glob(pattern)) if root else []
    if not paths:
        raise FileNotFoundError(
            f"{FINEWEB_FOLDER}/{pattern} is missing, and no hashes of these shards are "
            "published to check a download by: fetch some with modded-nanogpt's "
            "data/cached_fineweb10B.py (the data set kjj0/fineweb10B-gpt2 on Hugging "
            f"Face), and set {DATA_VARIABLE} to the folder that has {FINEWEB_FOLDER}; "
            f"it is {root or 'not set'}"
        )
    return paths


def open_tokens(path: Path) -> Tokens:
    """Maps a file of GPT-2 ids that starts with the end of text.

    Raises:
        ValueError: If it is anything else.
    """
    size = path.stat().st_size
    if size == 0 or size % TOKEN.itemsize:
        raise ValueError(f"{path} must hold whole uint16 tokens, got {size} bytes")
    tokens = np.memmap(path, TOKEN, mode="r")
    if len(tokens) < MIN_TOKENS:
        raise ValueError(
            f"{path} must hold at least {MIN_TOKENS} tokens, got {len(tokens)}"
        )
    if tokens[0] != END_OF_TEXT:
        raise ValueError(f"{path} must start with {END_OF_TEXT}, got {tokens[0]}")
    if (largest := int(tokens.max())) >= GPT2_VOCAB_SIZE:
        raise ValueError(
            f"{path} must hold tokens below {GPT2_VOCAB_SIZE}, got {largest}"
        )
    return tokens


def open_shard(path: Path) -> Tokens:
    """Maps a shard of modded-nanogpt, without its header.

    Raises:
        ValueError: If header and size are not those of such a shard.
    """
    size = path.stat().st_size
    if size < SHARD_HEADER.itemsize:
        raise ValueError(
            f"{path} must have a header of {SHARD_HEADER.itemsize} bytes, got {size}"
        )
    magic, version, count = (int(n) for n in np.fromfile(path, "<i4", count=3))
    if (magic, version) != (SHARD_MAGIC, SHARD_VERSION):
        raise ValueError(
            f"{path} must start with {SHARD_MAGIC} and {SHARD_VERSION} (a shard of "
            f"modded-nanogpt), got {magic} and {version}"
        )
    expected = SHARD_HEADER.itemsize + count * TOKEN.itemsize
    if count < 1 or size != expected:
        raise ValueError(
            f"{path} must have {expected} bytes for the {count} tokens that its header "
            f"tells of, got {size}"
        )
    offset = SHARD_HEADER.itemsize
    return np.memmap(path, TOKEN, mode="r", offset=offset)


def write_tokens(path: Path, documents: Iterable[str]) -> int:
    """Writes documents as a token file of the form of wiki and c4.

    Returns:
        The number of tokens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("wb") as file:
        for document in documents:
            tokens = np.array([END_OF_TEXT, *encode_gpt2(document)], TOKEN)
            file.write(tokens.tobytes())
            count += len(tokens)
    return count
