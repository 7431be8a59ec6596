"""Augmenting a batch at once is augmenting each image with its own stream."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare

from data_pipelines import TransformPreset, UserError, transform_preset
from data_pipelines.order import augmentation_rng
from data_pipelines.transforms import BatchAugmentation, augmentation_words
from data_pipelines.transforms.random_words import below, below_array, raw_words, uniform


def some_images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def batch_of(preset: TransformPreset) -> BatchAugmentation:
    assert preset.augment_batch is not None
    return preset.augment_batch


def by_definition(image: NDArray[np.uint8], words: list[int], *, mode: str) -> NDArray[np.uint8]:
    """Pads, cuts and mirrors one image with NumPy's own functions."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode=mode)
    flip, top, left = (
        (word >> 32) * bound >> 32 for word, bound in zip(words, (2, 9, 9), strict=True)
    )
    part = padded[top : top + image.shape[0], left : left + image.shape[1]]
    return np.fliplr(part) if flip else part


@pytest.mark.parametrize("num_words", [1, 3, 4, 5, 9])
def test_words_of_many_are_the_words_of_each(num_words: int) -> None:
    ids = np.array([0, 1, 7, 2**40, 1281166])
    epochs = np.array([0, 3, 3, 90, 2**33])
    found = augmentation_words(2**62 + 5, epochs=epochs, sample_ids=ids, num_words=num_words)
    expected = [
        augmentation_rng(2**62 + 5, epoch, sample_id).bit_generator.random_raw(num_words)
        for epoch, sample_id in zip(epochs.tolist(), ids.tolist(), strict=True)
    ]
    assert np.array_equal(found, expected)
    same = augmentation_words(3, epochs=5, sample_ids=ids, num_words=num_words)
    alone = augmentation_words(3, epochs=5, sample_ids=ids[3:4], num_words=num_words)
    assert np.array_equal(same[3:4], alone)


def test_words_need_a_seed_that_can_be_one() -> None:
    with pytest.raises(UserError, match="seed: -1 is not in"):
        augmentation_words(-1, epochs=0, sample_ids=np.arange(3), num_words=1)


@pytest.mark.parametrize(("name", "mode"), [("cifar_basic", "reflect"), ("cifar_zero", "constant")])
@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (5, 9, 4)])
def test_batch_image_and_definition_agree(name: str, mode: str, shape: tuple[int, ...]) -> None:
    preset = transform_preset(name)
    images = some_images(80, *shape)
    images.flags.writeable = False
    ids = np.arange(1000, 1080)
    words = augmentation_words(4, epochs=2, sample_ids=ids, num_words=3)
    together = batch_of(preset).augment(images, words)
    assert together.shape == images.shape
    for place, sample_id in enumerate(ids.tolist()):
        alone = preset.augment(images[place], augmentation_rng(4, 2, sample_id))
        assert np.array_equal(together[place], alone)
        expected = by_definition(images[place], words[place].tolist(), mode=mode)
        assert np.array_equal(alone, expected)


def test_batches_that_are_not_contiguous_are_augmented() -> None:
    images = some_images(9, 32, 32, 3)
    words = augmentation_words(0, epochs=0, sample_ids=np.arange(9), num_words=3)
    batch = batch_of(transform_preset("cifar_basic"))
    expected = batch.augment(images, words)
    assert np.array_equal(batch.augment(np.asfortranarray(images), words), expected)
    assert np.array_equal(batch.augment(images[::-1], words[::-1]), expected[::-1])
    assert batch.augment(images[:0], words[:0]).shape == (0, 32, 32, 3)


def test_shifts_and_flips_are_equally_frequent() -> None:
    words = augmentation_words(0, epochs=0, sample_ids=np.arange(40000), num_words=3)
    # Every pixel has its place for a value, so the first pixel of the result tells the shift.
    rows, columns = np.mgrid[0:16, 0:16]
    image = np.stack([rows, columns, rows], axis=2).astype(np.uint8) + 1
    images = np.repeat(image[np.newaxis], len(words), axis=0)
    result = batch_of(transform_preset("cifar_zero")).augment(images, words)
    middle = result[:, 8, 8].astype(int)
    mirrored = result[:, 8, 9, 1] < result[:, 8, 8, 1]
    counts = np.zeros((2, 9, 9))
    shift = np.where(mirrored, middle[:, 1] - 4, middle[:, 1] - 5)
    np.add.at(counts, (mirrored.astype(int), middle[:, 0] - 5, shift), 1)
    assert counts.sum() == len(words)
    assert chisquare(counts.ravel()).pvalue > 1e-3


def test_images_too_small_to_be_mirrored_are_refused() -> None:
    image = some_images(4, 8, 3)
    with pytest.raises(UserError, match="cifar_basic: images of 4 x 8 pixels cannot be padded by"):
        transform_preset("cifar_basic").augment(image, augmentation_rng(0, 0, 0))
    padded = transform_preset("cifar_zero").augment(image, augmentation_rng(0, 0, 0))
    assert padded.shape == (4, 8, 3)


def test_numbers_from_words() -> None:
    highest = 2**64 - 1
    assert uniform(0, low=-1, high=3) == -1
    assert 3 - 1e-15 < uniform(highest, low=-1, high=3) < 3
    assert [below(word, 10) for word in (0, 2**63, highest)] == [0, 5, 9]
    words = augmentation_rng(0, 0, 0).bit_generator.random_raw(1000)
    assert below_array(words, 7).tolist() == [below(word, 7) for word in words.tolist()]
    rng = augmentation_rng(0, 0, 0)
    assert raw_words(rng, 400) + raw_words(rng, 600) == words.tolist()
