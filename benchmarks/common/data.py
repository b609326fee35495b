"""Image sets as arrays, and the order in which training reads them.

The official test part of MNIST, Fashion-MNIST and CIFAR-10 serves as validation set:
learning rates are chosen by it, so no figure made here is a test accuracy. Digits has
no official split; a fixed stratified fifth is held out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks.common.sources import SOURCES, RawImages, read_source

DATASETS = ("digits", *SOURCES)
CLASSES = {
    "digits": tuple("0123456789"),
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("t-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}


class Dataset(NamedTuple):
    """Images of mean 0 and deviation 1 per channel (over the training part)."""

    train_images: Float[np.ndarray, "N H W C"]  # float32
    train_labels: Int[np.ndarray, " N"]  # int32
    validation_images: Float[np.ndarray, "M H W C"]  # float32
    validation_labels: Int[np.ndarray, " M"]  # int32
    name: str
    classes: tuple[str, ...]


def load(name: str) -> Dataset:
    """Loads one of `DATASETS`.

    Raises:
        ValueError: If the name is unknown, or a file is not what it should be.
        FileNotFoundError: If a file is neither on disk nor to be had by network; the
            message says where to put it.
    """
    if name not in DATASETS:
        raise ValueError(f"`name` must be one of {', '.join(DATASETS)}, got {name!r}")
    train, validation = read_digits() if name == "digits" else read_source(name)
    mean = train.images.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    std = train.images.std(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    return Dataset(
        train_images=(train.images - mean) / std,
        train_labels=train.labels.astype(np.int32),
        validation_images=(validation.images - mean) / std,
        validation_labels=validation.labels.astype(np.int32),
        name=name,
        classes=CLASSES[name],
    )


def read_digits() -> tuple[RawImages, RawImages]:
    """1,797 images of 8×8 pixels, embedded in scikit-learn: 1,437 and 360 of them."""
    pixels, digits = load_digits(return_X_y=True)  # (1797, 64), (1797,)
    images = np.asarray(pixels, np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(digits, np.uint8)
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return (
        RawImages(images[train], labels[train]),
        RawImages(images[validation], labels[validation]),
    )


def head(dataset: Dataset, limit: int) -> Dataset:
    """The first `limit` images of both parts; for quick looks and tests."""
    return dataset._replace(
        train_images=dataset.train_images[:limit],
        train_labels=dataset.train_labels[:limit],
        validation_images=dataset.validation_images[:limit],
        validation_labels=dataset.validation_labels[:limit],
    )


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in one pass; the rest of an epoch's shuffle is left out.

    Raises:
        ValueError: If there is not a single whole batch.
    """
    if not 0 < batch_size <= num_images:
        raise ValueError(
            f"`batch_size` must be between 1 and the {num_images} training images, "
            f"got {batch_size}"
        )
    return num_images // batch_size


def batches(
    dataset: Dataset, batch_size: int, num_steps: int, *, seed: int, start: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the training batches of steps `start`, …, `num_steps` − 1.

    Each epoch is shuffled by (seed, epoch) alone, so a step's batch depends on nothing
    but (seed, step), and a run can be resumed at any step.

    Yields:
        Images (B, H, W, C) and labels (B,).
    """
    num_images = len(dataset.train_labels)
    per_epoch = steps_per_epoch(num_images, batch_size)
    order, order_epoch = np.arange(0), -1
    for step in range(start, num_steps):
        epoch, position = divmod(step, per_epoch)
        if epoch != order_epoch:
            order = np.random.default_rng([seed, epoch]).permutation(num_images)
            order_epoch = epoch
        chosen = order[position * batch_size : (position + 1) * batch_size]
        yield dataset.train_images[chosen], dataset.train_labels[chosen]
