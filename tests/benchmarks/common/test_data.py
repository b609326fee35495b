"""Image sets as arrays, and the order of batches."""

import numpy as np
import pytest

from benchmarks.common import data


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def numbered(count):
    """A data set whose images and labels are their own numbers."""
    labels = np.arange(count, dtype=np.int32)
    images = labels.astype(np.float32).reshape(-1, 1, 1, 1)
    return data.Dataset(images, labels, images, labels, "numbered", ())


def test_digits_are_split_by_class(digits):
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.validation_images.shape == (360, 8, 8, 1)
    share = np.bincount(digits.validation_labels) / np.bincount(digits.train_labels)
    np.testing.assert_allclose(share, 0.25, atol=0.01)  # one image in some 145


def test_digits_are_normalized(digits):
    # float32 sums over 1437 · 64 pixels
    np.testing.assert_allclose(digits.train_images.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(digits.train_images.std(), 1, atol=1e-5)


def test_loading_twice_gives_the_same(digits):
    for first, second in zip(digits, data.load("digits"), strict=True):
        np.testing.assert_array_equal(first, second)


def test_head_keeps_the_first_images(digits):
    few = data.head(digits, 10)
    np.testing.assert_array_equal(few.train_images, digits.train_images[:10])
    np.testing.assert_array_equal(few.validation_labels, digits.validation_labels[:10])


def test_an_epoch_reads_every_image_once():
    seen = [labels for _, labels in data.batches(numbered(12), 4, 3, seed=0)]
    assert sorted(np.concatenate(seen)) == list(range(12))


def test_images_stay_with_their_labels():
    for images, labels in data.batches(numbered(10), 3, 9, seed=1):
        np.testing.assert_array_equal(images.ravel(), labels)


def orders(**options):
    feed = data.batches(numbered(10), 3, 9, **options)  # three batches an epoch
    return [labels.tolist() for _, labels in feed]


def test_epochs_and_seeds_differ():
    order = orders(seed=0)
    assert order[0:3] != order[3:6]
    assert order != orders(seed=1)
    assert order == orders(seed=0)


@pytest.mark.parametrize("start", [0, 1, 3, 5, 9])
def test_a_run_resumes_at_any_step(start):
    assert orders(seed=2, start=start) == orders(seed=2)[start:]


@pytest.mark.parametrize("batch_size", [0, 13])
def test_a_batch_must_fit(batch_size):
    with pytest.raises(ValueError, match=rf"12 training images, got {batch_size}"):
        data.steps_per_epoch(12, batch_size)
