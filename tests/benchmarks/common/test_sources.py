"""Official files: what is read from them, and what is refused."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading

import numpy as np
import pytest

from benchmarks.common import data, sources

NUM_TRAIN, NUM_TEST = 7, 4


def random_part(rng, count, shape):
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, rng.integers(0, 10, count, dtype=np.uint8)


def idx_bytes(array):
    """The IDX format by the book: magic, sizes, entries."""
    magic = struct.pack(">BBBB", 0, 0, 8, array.ndim)
    return magic + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, part, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as file:
        file.write(idx_bytes(images))
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
        file.write(idx_bytes(labels))


def cifar10_bytes(images, labels):
    """Each record: label, 1024 red, 1024 green, 1024 blue values, row by row."""
    out = bytearray()
    for image, label in zip(images, labels, strict=True):
        out.append(label)
        for channel in range(3):
            for row in range(32):
                out += bytes(image[row, column, channel] for column in range(32))
    return bytes(out)


@pytest.fixture
def small(monkeypatch):
    """Sources whose files hold a handful of images."""
    for name in sources.SOURCES:
        changed = dataclasses.replace(
            sources.SOURCES[name], num_train=NUM_TRAIN, num_test=NUM_TEST, hashes={}
        )
        monkeypatch.setitem(sources.SOURCES, name, changed)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DROPMUON_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def mnist(small, folder):
    """A small MNIST on disk: the folder, and what lies in it."""
    rng = np.random.default_rng(0)
    train = random_part(rng, NUM_TRAIN, (28, 28))
    test = random_part(rng, NUM_TEST, (28, 28))
    write_idx(folder / "mnist", "train", *train)
    write_idx(folder / "mnist", "t10k", *test)
    return folder / "mnist", train, test


@pytest.fixture
def cifar10(small, folder):
    """A small CIFAR-10 on disk: the folder, and what lies in it."""
    rng = np.random.default_rng(1)
    batches = [random_part(rng, NUM_TRAIN, (32, 32, 3)) for _ in range(5)]
    test = random_part(rng, NUM_TEST, (32, 32, 3))
    directory = folder / "cifar-10-batches-bin"
    directory.mkdir()
    for number, batch in enumerate(batches, start=1):
        (directory / f"data_batch_{number}.bin").write_bytes(cifar10_bytes(*batch))
    (directory / "test_batch.bin").write_bytes(cifar10_bytes(*test))
    return directory, batches, test


def test_idx_files_are_read_as_written(mnist):
    _, train, test = mnist
    for got, (images, labels) in zip(
        sources.read_source("mnist"), (train, test), strict=True
    ):
        np.testing.assert_array_equal(got.images[..., 0], images)
        np.testing.assert_array_equal(got.labels, labels)


def test_cifar10_files_are_read_as_written(cifar10):
    _, batches, test = cifar10
    train_read, test_read = sources.read_source("cifar10")
    np.testing.assert_array_equal(
        train_read.images, np.concatenate([images for images, _ in batches])
    )
    np.testing.assert_array_equal(
        train_read.labels, np.concatenate([labels for _, labels in batches])
    )
    np.testing.assert_array_equal(test_read.images, test[0])
    np.testing.assert_array_equal(test_read.labels, test[1])


def test_images_are_normalized_by_the_training_part(cifar10):
    dataset = data.load("cifar10")
    assert dataset.train_images.dtype == np.float32
    assert dataset.train_labels.dtype == np.int32
    # float32 sums over 35 · 1024 pixels: 1e-5 is some 80 roundings of values near 1
    np.testing.assert_allclose(dataset.train_images.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(dataset.train_images.std((0, 1, 2)), 1, atol=1e-5)
    train, test = sources.read_source("cifar10")
    mean = train.images.mean((0, 1, 2))
    std = train.images.std((0, 1, 2))
    np.testing.assert_allclose(
        dataset.validation_images, (test.images - mean) / std, atol=1e-5
    )


def damage_magic(content):
    return b"\x00\x00\x0d" + content[3:]  # says that the entries are floats


def damage_count(content):
    return content[:4] + struct.pack(">I", 999) + content[8:]


def shorten(content):
    return content[:-1]


@pytest.mark.parametrize("damage", [damage_magic, damage_count, shorten])
@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_damaged_idx_files_are_refused(mnist, damage, part):
    path = mnist[0] / f"train-{part}-ubyte.gz"
    path.write_bytes(gzip.compress(damage(gzip.decompress(path.read_bytes()))))
    with pytest.raises(ValueError, match=rf"{path.name} must .*got "):
        sources.read_source("mnist")


@pytest.mark.parametrize("damage", [shorten, lambda content: b"plain" + content])
def test_damaged_gzip_files_are_refused(mnist, damage):
    path = mnist[0] / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path.name} must be a whole gzip file"):
        sources.read_source("mnist")


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_official_files_are_known_by_their_hash(mnist, monkeypatch, cut):
    path = mnist[0] / "t10k-labels-idx1-ubyte.gz"
    point_to(monkeypatch, "mnist", "http://127.0.0.1:9/", {path.name: md5(path)})
    sources.read_source("mnist")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=rf"{path.name} must be the official file"):
        sources.read_source("mnist")


def test_truncated_cifar10_files_are_refused(cifar10):
    path = cifar10[0] / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[: -sources.CIFAR10_RECORD])  # a whole record
    expected = NUM_TRAIN * 3073
    with pytest.raises(ValueError, match=rf"{expected} bytes .*got {expected - 3073}"):
        sources.read_source("cifar10")


def test_impossible_labels_are_refused(cifar10, mnist):
    path = cifar10[0] / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"test_batch.bin must .*got 10"):
        sources.read_source("cifar10")
    labels = np.full(NUM_TRAIN, 11, np.uint8)
    write_idx(mnist[0], "train", mnist[1][0], labels)
    with pytest.raises(ValueError, match=r"train-labels.*got 11"):
        sources.read_source("mnist")


@pytest.mark.parametrize("name", sources.SOURCES)
def test_a_missing_file_is_named(folder, name):
    with pytest.raises(FileNotFoundError, match=r"is missing. DROPMUON_DATA is set"):
        data.load(name)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="digits, mnist, fashion_mnist, cifar10"):
        data.load("imagenet")


# ------------------------------------------------------------------------ downloads


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a web server for the folder `tmp_path / "web"`."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """No DROPMUON_DATA, no proxy, and an empty cache folder."""
    monkeypatch.delenv("DROPMUON_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources.pooch, "os_cache", lambda name: tmp_path / "cache")


def point_to(monkeypatch, name, address, hashes):
    changed = dataclasses.replace(sources.SOURCES[name], address=address, hashes=hashes)
    monkeypatch.setitem(sources.SOURCES, name, changed)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_idx_files_are_downloaded(monkeypatch, tmp_path, small, cache, server):
    rng = np.random.default_rng(2)
    train = random_part(rng, NUM_TRAIN, (28, 28))
    write_idx(tmp_path / "web", "train", *train)
    write_idx(tmp_path / "web", "t10k", *random_part(rng, NUM_TEST, (28, 28)))
    hashes = {path.name: md5(path) for path in (tmp_path / "web").iterdir()}
    point_to(monkeypatch, "mnist", server, hashes)
    got, _ = sources.read_source("mnist")
    np.testing.assert_array_equal(got.images[..., 0], train[0])


def test_the_cifar10_archive_is_downloaded(monkeypatch, tmp_path, small, cache, server):
    rng = np.random.default_rng(3)
    parts = [random_part(rng, NUM_TRAIN, (32, 32, 3)) for _ in range(5)]
    parts.append(random_part(rng, NUM_TEST, (32, 32, 3)))
    archive = tmp_path / "web" / "cifar-10-binary.tar.gz"
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    with tarfile.open(archive, "w:gz") as tar:
        for name, part in zip(names, parts, strict=True):
            content = cifar10_bytes(*part)
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    point_to(monkeypatch, "cifar10", server, {archive.name: md5(archive)})
    train, test = sources.read_source("cifar10")
    np.testing.assert_array_equal(train.images[-NUM_TRAIN:], parts[4][0])
    np.testing.assert_array_equal(test.labels, parts[5][1])


def test_a_download_with_another_hash_is_refused(
    monkeypatch, tmp_path, small, cache, server
):
    rng = np.random.default_rng(4)
    write_idx(tmp_path / "web", "train", *random_part(rng, NUM_TRAIN, (28, 28)))
    names = [path.name for path in (tmp_path / "web").iterdir()]
    hashes = dict.fromkeys(names, "0" * 32)
    point_to(monkeypatch, "mnist", server, hashes)
    with pytest.raises(ValueError, match="does not match the known hash"):
        sources.read_source("mnist")
    assert not list((tmp_path / "cache").rglob("*.gz"))


@pytest.mark.parametrize("name", sources.SOURCES)
def test_no_network_says_where_to_put_the_files(monkeypatch, cache, name):
    hashes = sources.SOURCES[name].hashes
    point_to(monkeypatch, name, "http://127.0.0.1:9/", hashes)  # nobody listens
    folder = sources.SOURCES[name].folder
    with pytest.raises(FileNotFoundError, match=rf"{folder}/.* set DROPMUON_DATA"):
        data.load(name)
