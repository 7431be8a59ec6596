"""Cutout: drawn from the sample's own words, alone and in a batch alike."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare
from shards import make_photos

from data_pipelines import (
    STATISTICS,
    MicroBatchLoader,
    ShardReader,
    TransformPreset,
    UserError,
    augmentation_rng,
    sample_order,
    transform_preset,
)
from data_pipelines.transforms import BatchAugmentation, augmentation_words


def batch_of(preset: TransformPreset) -> BatchAugmentation:
    assert preset.augment_batch is not None
    return preset.augment_batch


def some_images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def by_definition(
    image: NDArray[np.uint8], words: list[int], *, length: int, fill: tuple[int, ...]
) -> NDArray[np.uint8]:
    """As `cutout` of google-research/sam's augmentation.py pads a mask of zeros with ones."""
    height, width = image.shape[:2]
    row, column = (words[0] >> 32) * height >> 32, (words[1] >> 32) * width >> 32
    lower, upper = max(0, row - length // 2), max(0, height - row - length // 2)
    left, right = max(0, column - length // 2), max(0, width - column - length // 2)
    inside = np.zeros((height - lower - upper, width - left - right))
    mask = np.pad(inside, ((lower, upper), (left, right)), constant_values=1)
    return np.where(mask[..., np.newaxis] == 0, np.array(fill, np.uint8), image)


@pytest.mark.parametrize("base", ["cifar_basic", "cifar_zero"])
@pytest.mark.parametrize(
    ("statistics", "fill"),
    [("cifar10", (125, 123, 114)), ("cifar100", (129, 124, 112)), ("none", (0, 0, 0))],
)
@pytest.mark.parametrize("length", [2, 16, 80])
def test_batch_image_and_definition_agree(
    base: str, statistics: str, fill: tuple[int, ...], length: int
) -> None:
    preset = transform_preset(f"{base}:cutout={length},statistics={statistics}")
    plain = transform_preset(base)
    images = some_images(60, 32, 28, 3)
    images.flags.writeable = False
    ids = np.arange(1000, 1060)
    words = augmentation_words(4, epochs=2, sample_ids=ids, num_words=5)
    together = batch_of(preset).augment(images, words)
    # The same shifts and flips as without.
    shifted = batch_of(plain).augment(images, words[:, :3])
    for place, sample_id in enumerate(ids.tolist()):
        alone = preset.augment(images[place], augmentation_rng(4, 2, sample_id))
        assert np.array_equal(together[place], alone)
        centre = words[place, 3:].tolist()
        assert np.array_equal(
            alone, by_definition(shifted[place], centre, length=length, fill=fill)
        )


def test_the_blank_pixel_is_nearly_zero_after_normalising() -> None:
    for name in ("cifar10", "cifar100"):
        mean, std = STATISTICS[name]
        preset = transform_preset(f"cifar_basic:cutout=80,statistics={name}")
        blank = preset.augment(some_images(32, 32, 3), augmentation_rng(0, 0, 0))
        assert len(np.unique(blank.reshape(-1, 3), axis=0)) == 1
        assert np.abs((blank[0, 0] / 255 - mean) / std).max() < 0.5 / 255 / min(std or ())


def test_every_pixel_is_the_centre_equally_often() -> None:
    preset = transform_preset("cifar_zero:cutout=2,statistics=none")
    words = augmentation_words(0, epochs=0, sample_ids=np.arange(10000), num_words=5)
    # The fourth of nine shifts, which is none: shifts make pixels black, too.
    words[:, 1:3] = np.uint64(2**63)
    images = np.full((10000, 8, 8, 1), 255, np.uint8)
    blank = batch_of(preset).augment(images, words)[..., 0] == 0
    # The square of 2 x 2 has its centre at the lower right; at the border a part of it is left.
    centres = np.array([np.argwhere(image).max(axis=0) for image in blank])
    counts = np.zeros((8, 8))
    np.add.at(counts, tuple(centres.T), 1)
    assert chisquare(counts.ravel()).pvalue > 1e-3
    assert set(blank.sum(axis=(1, 2)).tolist()) == {1, 2, 4}


@pytest.mark.parametrize("resident", [False, True])
def test_the_loader_cuts_out(tmp_path: Path, resident: bool) -> None:
    index = make_photos(tmp_path / "photos", 24)
    preset = transform_preset("cifar_basic:cutout=6")
    loader = MicroBatchLoader(
        index,
        order="global",
        seed=3,
        batch_size=24,
        positions=[range(24)],
        transform=preset,
        num_workers=0,
        first_step=0,
        num_steps=1,
        resident=resident,
    )
    ((images, _),) = loader
    order = sample_order("global", index=index, seed=3, batch_size=24)
    sample_ids = order.sample_ids(0, start=0, stop=24).tolist()
    for place, sample in ShardReader(index).read(sample_ids):
        rng = augmentation_rng(3, 0, sample_ids[place])
        assert np.array_equal(images[place].numpy(), preset.augment(sample.image, rng))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_basic:cutout=15", "cutout 15 is odd"),
        ("cifar_basic:cutout=0", "cutout 0 is not in 2"),
        ("cifar_basic:cutout=big", "cutout big is not in 2"),
        ("none:cutout=16", "none has no parameter cutout, only statistics"),
        ("inception_vit:cutout=16", "inception_vit has no parameter cutout, only evaluation"),
        ("cifar_zero:cut=16", "cifar_zero has no parameter cut, only cutout, statistics"),
    ],
)
def test_what_cutout_cannot_be(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        transform_preset(name)


def test_a_mean_for_other_channels_is_refused() -> None:
    with pytest.raises(UserError, match=r"cutout: the images have 1 channels, but their mean"):
        transform_preset("cifar_zero:cutout=4").augment(
            some_images(8, 8, 1), augmentation_rng(0, 0, 0)
        )
