"""The official files of MNIST, Fashion-MNIST and CIFAR-10: finding and reading them.

If the environment variable `DROPMUON_DATA` names a folder, files are read there and
accepted by their published hash (those of CIFAR-10, of whose archive alone there is
one, by their size and labels):

    mnist/train-images-idx3-ubyte.gz, …            (4 files)
    fashion_mnist/train-images-idx3-ubyte.gz, …    (4 files)
    cifar-10-batches-bin/data_batch_1.bin, …       (6 files)

Otherwise they are downloaded once into pooch's cache folder, and a download whose hash
is not the published one is refused.
"""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch
from jaxtyping import UInt8

DATA_VARIABLE = "DROPMUON_DATA"
NUM_CLASSES = 10
IDX_UINT8 = 0x08  # the type byte of an IDX header: unsigned bytes
CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: label, then red, green and blue planes
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR10_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR10_TEST = "test_batch.bin"


class RawImages(NamedTuple):
    """One part of a data set, as its files hold it."""

    images: UInt8[np.ndarray, "N H W C"]
    labels: UInt8[np.ndarray, " N"]


@dataclass(frozen=True)
class Source:
    """Where the files of one data set come from, and what they hold."""

    folder: str  # inside DROPMUON_DATA, and inside the cache
    address: str  # of the folder that has the files on the network; ends with "/"
    hashes: dict[str, str]  # md5 of each file, or of the archive
    num_train: int = 0  # images in each training file
    num_test: int = 0  # images in the test file


SOURCES = {
    "mnist": Source(
        folder="mnist",
        # The mirror that torchvision asks first.
        address="https://ossci-datasets.s3.amazonaws.com/mnist/",
        hashes={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        num_train=60_000,
        num_test=10_000,
    ),
    "fashion_mnist": Source(
        folder="fashion_mnist",
        address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        hashes={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        num_train=60_000,
        num_test=10_000,
    ),
    "cifar10": Source(
        folder="cifar-10-batches-bin",
        address="https://www.cs.toronto.edu/~kriz/",
        hashes={CIFAR10_ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"},
        num_train=10_000,
        num_test=10_000,
    ),
}


def read_source(name: str) -> tuple[RawImages, RawImages]:
    """Returns the training part and the official test part of one of `SOURCES`.

    Raises:
        FileNotFoundError: If a file is neither on disk nor to be had by network.
        ValueError: If a file is not what it should be.
    """
    source = SOURCES[name]
    if name == "cifar10":
        train = [
            read_cifar10_batch(find_cifar10(source, file), source.num_train)
            for file in CIFAR10_TRAIN
        ]
        test = read_cifar10_batch(find_cifar10(source, CIFAR10_TEST), source.num_test)
        images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
        return RawImages(images, labels), test
    return (
        read_idx_pair(source, "train", source.num_train),
        read_idx_pair(source, "t10k", source.num_test),
    )


# ------------------------------------------------------------------------- reading


def read_idx_pair(source: Source, part: str, count: int) -> RawImages:
    """Reads the images and labels of one part (`train` or `t10k`)."""
    images = find_file(source, f"{part}-images-idx3-ubyte.gz")
    labels = find_file(source, f"{part}-labels-idx1-ubyte.gz")
    return RawImages(
        read_idx(images, (count, 28, 28))[..., None],  # (N, 28, 28, 1)
        checked_labels(labels, read_idx(labels, (count,))),  # (N,)
    )


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes that must have this shape.

    Layout: two zero bytes, a type byte, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the entries, last dimension fastest.

    Raises:
        ValueError: If the file is damaged or holds something else.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file, got: {error}") from error
    expected = bytes([0, 0, IDX_UINT8, len(shape)])
    expected += np.array(shape, dtype=">u4").tobytes()
    header, entries = content[: len(expected)], content[len(expected) :]
    if header != expected:
        raise ValueError(
            f"{path} must start with the IDX header {expected.hex()} (unsigned bytes "
            f"of shape {shape}), got {header.hex()}"
        )
    if len(entries) != np.prod(shape):
        raise ValueError(
            f"{path} must hold {np.prod(shape)} bytes after its header, "
            f"got {len(entries)}"
        )
    return np.frombuffer(entries, np.uint8).reshape(shape)


def read_cifar10_batch(path: Path, count: int) -> RawImages:
    """Reads one batch of CIFAR-10's binary version.

    Raises:
        ValueError: If the file has another size or impossible labels.
    """
    size = path.stat().st_size
    if size != count * CIFAR10_RECORD:
        raise ValueError(
            f"{path} must have {count * CIFAR10_RECORD} bytes ({count} records of "
            f"{CIFAR10_RECORD}), got {size}"
        )
    records = np.fromfile(path, np.uint8).reshape(count, CIFAR10_RECORD)
    planes = records[:, 1:].reshape(count, 3, 32, 32)  # (N, C, H, W)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))  # (N, H, W, C)
    return RawImages(images, checked_labels(path, records[:, 0]))


def checked_labels(path: Path, labels: np.ndarray) -> np.ndarray:
    """Returns the labels; ValueError if one of them is not a class."""
    if labels.max() >= NUM_CLASSES:
        raise ValueError(
            f"{path} must hold labels below {NUM_CLASSES}, got {labels.max()}"
        )
    return labels


# ------------------------------------------------------------------------- finding


def find_file(source: Source, name: str) -> Path:
    """The path of a file of `source`, downloaded if it has to be."""
    return find_local(source, name) or Path(download(source, name))


def find_cifar10(source: Source, name: str) -> Path:
    """The path of a file of CIFAR-10, whose download is one archive of all six."""
    local = find_local(source, name)
    if local is not None:
        return local
    members = [f"{source.folder}/{file}" for file in (*CIFAR10_TRAIN, CIFAR10_TEST)]
    paths = download(source, CIFAR10_ARCHIVE, pooch.Untar(members=members))
    return next(Path(path) for path in paths if Path(path).name == name)


def find_local(source: Source, name: str) -> Path | None:
    """The path of a file in `DROPMUON_DATA`, or None if that variable is not set."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return None
    path = Path(folder) / source.folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. {DATA_VARIABLE} is set to {folder}: put the official "
            f"file there (from {source.address}), or unset the variable to download it."
        )
    known, content = source.hashes.get(name), path.read_bytes()
    if known and (found := hashlib.md5(content).hexdigest()) != known:
        raise ValueError(
            f"{path} must be the official file (from {source.address}), whose MD5 is "
            f"{known}, got {len(content)} bytes of MD5 {found}"
        )
    return path


def download(source: Source, name: str, processor: pooch.Untar | None = None) -> Any:
    """Fetches a file into the cache, unless it is there, and checks its hash.

    Returns:
        Its path, or the paths that `processor` unpacked from it.
    """
    try:
        return pooch.retrieve(
            source.address + name,
            known_hash=f"md5:{source.hashes[name]}",
            fname=name,
            path=pooch.os_cache("dropmuon_optax") / source.folder,
            processor=processor,
            progressbar=True,
        )
    except OSError as error:
        raise FileNotFoundError(
            f"{source.address}{name} could not be downloaded ({error}). Without a "
            f"network, put the official files into a folder, as {source.folder}/… (the "
            "docstrings of benchmarks/common/sources.py and text_files.py list "
            f"them), and set {DATA_VARIABLE} to that folder; or take what needs none, "
            "--data digits of images or --data project of texts."
        ) from error
