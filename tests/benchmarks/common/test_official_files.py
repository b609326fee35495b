"""The official files, where `DROPMUON_DATA` says that they are there."""

import os

import numpy as np
import pytest

from benchmarks.common import sources

# Images per class and the mean and deviation of grey levels in [0, 1], as published.
FACTS = {
    "mnist": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        [0.13066],
        [0.30811],
    ),
    "fashion_mnist": ([6000] * 10, [1000] * 10, [0.28604], [0.35302]),
    "cifar10": (
        [5000] * 10,
        [1000] * 10,
        [0.49140, 0.48216, 0.44653],
        [0.24703, 0.24348, 0.26159],
    ),
}


@pytest.mark.skipif(
    not os.environ.get("DROPMUON_DATA"),
    reason="needs the official files in the folder DROPMUON_DATA",
)
@pytest.mark.parametrize("name", FACTS)
def test_official_files_hold_what_is_published(name):
    train_counts, test_counts, mean, std = FACTS[name]
    train, test = sources.read_source(name)
    assert np.bincount(train.labels).tolist() == train_counts
    assert np.bincount(test.labels).tolist() == test_counts
    pixels = train.images
    axes = (0, 1, 2)
    np.testing.assert_allclose(pixels.mean(axes) / 255, mean, atol=1e-5)
    np.testing.assert_allclose(pixels.std(axes) / 255, std, atol=1e-5)
