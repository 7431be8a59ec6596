"""Random crops have the distribution of the code they follow."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import RandomResizedCrop

from data_pipelines import transform_preset
from data_pipelines.order import augmentation_rng
from data_pipelines.transforms.evaluation import CentreSquare
from data_pipelines.transforms.random_crops import (
    Crop,
    CropRanges,
    tensorflow_crop,
    torchvision_crop,
)

HEIGHT, WIDTH = 375, 500
GOOGLE_VIT = CropRanges(area=(0.05, 1), aspect=(0.75, 1.33))
SAM = CropRanges(area=(0.08, 1), aspect=(3 / 4, 4 / 3))
NUM_DRAWS = 4000
# A test of 5 quantities would fail for equal distributions once in 2000 times; draws are fixed.
LEAST_PROBABILITY = 1e-4
# (top, left, height, width) of the first samples of a run with the seed 0.
TENSORFLOW_CROPS = [Crop(1, 27, 369, 298), Crop(2, 24, 331, 274), Crop(17, 92, 337, 375)]
TORCHVISION_CROPS = [Crop(70, 40, 157, 207), Crop(11, 31, 178, 216), Crop(28, 83, 315, 389)]


def tensorflow(seed: int, ranges: CropRanges, *, min_covered: float = 0) -> Crop:
    crop = tensorflow_crop(
        augmentation_rng(0, 0, seed),
        height=HEIGHT,
        width=WIDTH,
        ranges=ranges,
        min_covered=min_covered,
        num_attempts=100,
    )
    assert crop is not None
    return crop


def torchvision(seed: int, ranges: CropRanges) -> Crop:
    return torchvision_crop(augmentation_rng(0, 0, seed), height=HEIGHT, width=WIDTH, ranges=ranges)


def tensorflow_reference(rng: np.random.Generator, ranges: CropRanges) -> Crop:
    """Draws from all heights that are allowed for an aspect ratio, found by trying each.

    By the comments in TensorFlow's sample_distorted_bounding_box_op.cc.
    """
    while True:
        aspect = rng.uniform(*ranges.aspect)
        lowest, highest = (round(math.sqrt(a * HEIGHT * WIDTH / aspect)) for a in ranges.area)
        heights = [h for h in range(1, HEIGHT + 1) if h <= highest and round(h * aspect) <= WIDTH]
        height = rng.integers(min(lowest, heights[-1]), heights[-1] + 1)
        width = round(height * aspect)
        if not ranges.area[0] <= height * width / (HEIGHT * WIDTH) <= ranges.area[1]:
            continue
        top = rng.integers(0, HEIGHT - height) if height < HEIGHT else 0
        left = rng.integers(0, WIDTH - width) if width < WIDTH else 0
        return Crop(top, left, height, width)


def quantities(crops: list[Crop]) -> dict[str, NDArray[np.float64]]:
    top, left, height, width = np.array(crops, np.float64).T
    return {
        "area": height * width,
        "aspect": width / height,
        "height": height,
        "top": top,
        "left": left,
    }


def areas(draw: Callable[..., Crop], *arguments: object, **options: object) -> NDArray[np.float64]:
    crops = [draw(seed, *arguments, **options) for seed in range(NUM_DRAWS)]
    return quantities(crops)["area"] / (HEIGHT * WIDTH)


def similarity(first: list[Crop], second: list[Crop]) -> float:
    """Returns the least probability, over the quantities, that both are drawn alike."""
    one, other = quantities(first), quantities(second)
    return min(ks_2samp(one[name], other[name]).pvalue for name in one)


@pytest.mark.part("data")
@pytest.mark.parametrize("ranges", [GOOGLE_VIT, SAM])
def test_tensorflow_crops_have_their_distribution(ranges: CropRanges) -> None:
    rng = np.random.default_rng(1)
    ours = [tensorflow(seed, ranges) for seed in range(NUM_DRAWS)]
    reference = [tensorflow_reference(rng, ranges) for _ in range(NUM_DRAWS // 2)]
    assert similarity(ours, reference) > LEAST_PROBABILITY
    # The samplers differ, and the comparison can tell.
    others = [torchvision(seed, ranges) for seed in range(NUM_DRAWS // 2)]
    assert similarity(others, reference) < LEAST_PROBABILITY


@pytest.mark.part("data")
def test_torchvision_crops_have_their_distribution() -> None:
    torch.manual_seed(0)
    image = torch.empty(3, HEIGHT, WIDTH, dtype=torch.uint8)
    reference = [
        Crop(*RandomResizedCrop.get_params(image, list(SAM.area), list(SAM.aspect)))
        for _ in range(NUM_DRAWS)
    ]
    ours = [torchvision(seed, SAM) for seed in range(NUM_DRAWS)]
    assert similarity(ours, reference) > LEAST_PROBABILITY
    others = [tensorflow(seed, SAM) for seed in range(NUM_DRAWS)]
    assert similarity(others, reference) < LEAST_PROBABILITY


def test_the_bounds_are_those_of_the_originals() -> None:
    squares = CropRanges(area=(0.25, 1), aspect=(1, 1))
    streams = [augmentation_rng(0, 0, seed) for seed in range(4000)]
    by_tensorflow = [
        tensorflow_crop(rng, height=8, width=8, ranges=squares, min_covered=0, num_attempts=1)
        for rng in streams
    ]
    found = [crop for crop in by_tensorflow if crop is not None]
    assert len(found) == 4000
    # All sides from half to the whole are equally likely.
    counts = np.bincount([crop.height for crop in found])
    assert counts[:4].sum() == 0
    assert chisquare(counts[4:]).pvalue > 1e-3
    assert len(counts) == 9
    by_torchvision = [torchvision_crop(rng, height=8, width=8, ranges=squares) for rng in streams]
    for crops, last in ((found, 1), (by_torchvision, 2)):
        for place in ("top", "left"):
            # TensorFlow leaves out the last place, torchvision does not.
            places = [getattr(crop, place) for crop in crops if crop.height == 6]
            counts = np.bincount(places)
            assert len(counts) == last + 1
            assert chisquare(counts).pvalue > 1e-3


@pytest.mark.part("data")
@pytest.mark.parametrize(
    ("draw", "ranges", "mean", "median", "low", "high"),
    [
        (torchvision, SAM, 0.432, 0.422, 0.148, 0.734),
        (tensorflow, SAM, 0.370, 0.332, 0.117, 0.681),
        (tensorflow, GOOGLE_VIT, 0.341, 0.298, 0.083, 0.663),
    ],
)
def test_areas_are_those_measured_of_the_originals(
    draw: Callable[..., Crop],
    ranges: CropRanges,
    mean: float,
    median: float,
    low: float,
    high: float,
) -> None:
    found = areas(draw, ranges)
    # Three standard deviations of the mean; quantiles vary somewhat more.
    assert found.mean() == pytest.approx(mean, abs=0.011)
    assert np.quantile(found, [0.1, 0.5, 0.9]) == pytest.approx([low, median, high], abs=0.022)


@pytest.mark.part("data")
def test_a_tenth_of_the_image_is_covered_where_asked_for() -> None:
    assert areas(tensorflow, SAM, min_covered=0.1).min() >= 0.1
    assert 0.08 <= areas(tensorflow, SAM).min() < 0.09


@pytest.mark.part("data")
def test_sam_covers_a_tenth_of_the_image() -> None:
    """Its crops of a row that counts its pixels tell how wide they were."""
    preset = transform_preset("inception_sam:size=8")
    # Where a pixel lies, in two channels: row and column.
    rows, columns = np.mgrid[0:200, 0:200]
    image = np.stack([rows, columns, rows], axis=2).astype(np.uint8)
    shares = []
    for seed in range(1500):
        result = preset.augment(image, augmentation_rng(0, 0, seed)).astype(float)
        # The centres of the first and the last of 8 pixels are 7/8 of the crop apart.
        height = (result[-1, 0, 0] - result[0, 0, 0]) * 8 / 7
        width = abs(result[0, -1, 1] - result[0, 0, 1]) * 8 / 7
        shares.append(height * width / 200**2)
    # Read off within a pixel; 2.4 % of the crops would be below if 8 % were enough.
    assert min(shares) > 0.1 - 2 * 63 / 200**2
    assert np.mean(np.array(shares) < 0.104) > 0.002


def test_draws_are_the_same_for_ever() -> None:
    """These are crops of published runs: other numbers here mean that old runs cannot be redone."""
    assert [tensorflow(seed, GOOGLE_VIT) for seed in range(3)] == TENSORFLOW_CROPS
    assert [torchvision(seed, SAM) for seed in range(3)] == TORCHVISION_CROPS


@pytest.mark.parametrize("name", ["inception_vit", "inception_tv", "inception_sam"])
def test_images_of_any_shape_are_transformed(name: str) -> None:
    preset = transform_preset(f"{name}:size=32")
    for height, width in ((1, 1), (1, 2), (3, 1), (8, 8), (5, 300)):
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        for seed in range(20):
            result = preset.augment(image, augmentation_rng(0, 0, seed))
            assert result.shape == (32, 32, 3)
            assert image.min() <= result.max()
    # A single channel stays a single channel.
    for made in (preset, transform_preset("timm_0.9_bicubic:size=32")):
        assert made.augment(image[..., :1], augmentation_rng(0, 0, 0)).shape == (32, 32, 1)
        assert made.prepare(image[..., :1]).shape == (32, 32, 1)


@pytest.mark.parametrize(("height", "width"), [(20, 2000), (2000, 20)])
def test_no_crop_fits_an_extreme_image(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    words = augmentation_rng(0, 0, 0)
    assert (
        tensorflow_crop(
            words, height=height, width=width, ranges=SAM, min_covered=0.1, num_attempts=10
        )
        is None
    )
    expected = RandomResizedCrop.get_params(
        torch.empty(3, height, width), list(SAM.area), list(SAM.aspect)
    )
    found = torchvision_crop(words, height=height, width=width, ranges=SAM)
    assert tuple(found) == expected
    # The whole image, and the square in the middle, mirrored or not.
    for name, whole in (
        ("inception_vit", transform_preset("squash_bilinear").prepare(image)),
        ("inception_sam", CentreSquare(224)(image)),
    ):
        preset = transform_preset(name)
        results = [preset.augment(image, augmentation_rng(0, 0, seed)) for seed in range(8)]
        mirrored = [np.array_equal(result, whole[:, ::-1]) for result in results]
        plain = [np.array_equal(result, whole) for result in results]
        assert any(mirrored)
        assert any(plain)
        assert all(a != b for a, b in zip(mirrored, plain, strict=True))


@pytest.mark.parametrize("name", ["inception_vit", "inception_tv", "inception_sam"])
def test_half_of_the_images_are_mirrored(name: str) -> None:
    preset = transform_preset(f"{name}:size=8")
    # Brighter to the right, so that a crop tells whether it was mirrored.
    image = np.repeat(np.arange(200, dtype=np.uint8)[np.newaxis, :, np.newaxis], 150, axis=0)
    image = np.repeat(image, 3, axis=2)
    results = [preset.augment(image, augmentation_rng(0, 0, seed)) for seed in range(1000)]
    mirrored = sum(int(result[0, 0, 0]) > int(result[0, -1, 0]) for result in results)
    # Four standard deviations.
    assert abs(mirrored - 500) < 64
