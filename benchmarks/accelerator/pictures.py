"""The images that the CNN is trained on, on the device, without a network.

From the official files in the folder `DROPMUON_DATA`; where MNIST's are missing,
scikit-learn's digits stand in, enlarged to its shape.
"""

import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.figures import UnmeasuredError
from benchmarks.common import data
from benchmarks.common.sources import DATA_VARIABLE

NUM_TRAIN, NUM_VALIDATION = 60_000, 10_000  # as MNIST
SCALE, SIDE = 3, 28  # digits of 8 × 8 pixels become 24 × 24, in 28 × 28
NOISE = 0.5  # standard deviation, of images of deviation 1


def load(name: str) -> tuple[data.Dataset, str]:
    """A data set with arrays on the device, and the words that say what it is.

    Raises:
        UnmeasuredError: If its files are missing and nothing stands in for it.
        ValueError: If a file is damaged.
    """
    if name == "digits":
        return on_device(data.load(name)), "digits, 8 × 8, of scikit-learn"
    if not os.environ.get(DATA_VARIABLE):
        why = f"{DATA_VARIABLE} is not set"
    else:
        try:
            return on_device(data.load(name)), f"{name}, official files"
        except FileNotFoundError as error:
            why = str(error).partition(". ")[0]
    if name != "mnist":
        raise UnmeasuredError(why)
    said = f"digits of scikit-learn in the shape of MNIST, shifted, with noise: {why}"
    return on_device(stand_in()), said


def on_device(dataset: data.Dataset) -> data.Dataset:
    """The same, as JAX's arrays: a host that gathers batches would be the slowest."""
    arrays: dict[str, Any] = {
        key: jnp.asarray(value)
        for key, value in dataset._asdict().items()
        if isinstance(value, np.ndarray)
    }
    return dataset._replace(**arrays)


def stand_in() -> data.Dataset:
    """Digits at random places, with noise: as many images as MNIST has, and as large.

    The images that validate are made of digits that no training image is made of.
    """
    digits, rng = data.load("digits"), np.random.default_rng(0)
    train = enlarged(digits.train_images, digits.train_labels, NUM_TRAIN, rng)
    held_out = enlarged(
        digits.validation_images, digits.validation_labels, NUM_VALIDATION, rng
    )
    return data.Dataset(*train, *held_out, "mnist", digits.classes)


def enlarged(
    images: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`count` images (N, 28, 28, 1) and labels, drawn from images (M, 8, 8, 1)."""
    chosen = rng.integers(0, len(labels), count)
    large = images.repeat(SCALE, axis=1).repeat(SCALE, axis=2)  # (M, 24, 24, 1)
    room = SIDE - large.shape[1] + 1
    down, right = rng.integers(0, room, (2, count))
    found = rng.standard_normal((count, SIDE, SIDE, 1), np.float32) * NOISE
    for i in range(room):
        for j in range(room):
            here = np.flatnonzero((down == i) & (right == j))
            rows, columns = slice(i, i + large.shape[1]), slice(j, j + large.shape[2])
            found[here, rows, columns] += large[chosen[here]]
    return found, labels[chosen]
