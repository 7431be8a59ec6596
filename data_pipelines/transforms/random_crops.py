"""Where a random crop lies: the samplers of TensorFlow and of torchvision, which differ.

Both draw an area and an aspect ratio, but TensorFlow draws the height uniformly and so favours
small areas: with areas of 8 to 100 %, its crops of a 500 x 375 image cover 37 % on average, those
of torchvision 43 %.
"""

import math
from typing import NamedTuple

import numpy as np

from data_pipelines.transforms.random_words import below, raw_words, uniform

_NUM_TORCHVISION_ATTEMPTS = 10


class Crop(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class CropRanges(NamedTuple):
    """What crops may be.

    Attributes:
        area: Least and greatest share of the image.
        aspect: Least and greatest width / height.
    """

    area: tuple[float, float]
    aspect: tuple[float, float]


def tensorflow_crop(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    ranges: CropRanges,
    min_covered: float,
    num_attempts: int,
) -> Crop | None:
    """Draws a crop as `tf.image.sample_distorted_bounding_box` does for a box around the image.

    The aspect ratio is uniform, and so is the height among those that give an allowed area and fit;
    the crop never touches the lower or the right border unless it is as high or as wide as the
    image (TensorFlow's `sample_distorted_bounding_box_op.cc`).

    Args:
        rng: The sample's random stream.
        height: Of the image.
        width: Of the image.
        ranges: What crops may be.
        min_covered: Share of the image that a crop covers at least.
        num_attempts: How often to draw before giving up.

    Returns:
        None when no attempt gave an allowed crop.
    """
    for _ in range(num_attempts):
        words = raw_words(rng, 4)
        aspect = uniform(words[0], low=ranges.aspect[0], high=ranges.aspect[1])
        size = _tensorflow_size(words[1], height, width, aspect, ranges.area)
        if size is None or size[0] * size[1] < max(1, min_covered * height * width):
            continue
        crop_height, crop_width = size
        return Crop(
            top=below(words[2], height - crop_height) if crop_height < height else 0,
            left=below(words[3], width - crop_width) if crop_width < width else 0,
            height=crop_height,
            width=crop_width,
        )
    return None


def _tensorflow_size(
    word: int, height: int, width: int, aspect: float, area: tuple[float, float]
) -> tuple[int, int] | None:
    min_area, max_area = (share * height * width for share in area)
    crop_height = round(math.sqrt(min_area / aspect))
    max_height = round(math.sqrt(max_area / aspect))
    if round(max_height * aspect) > width:
        # The greatest height whose width, rounded, fits.
        max_height = int((width + 0.5 - 1e-7) / aspect)
        if round(max_height * aspect) > width:
            max_height -= 1
    max_height = min(max_height, height)
    crop_height = min(crop_height, max_height)
    crop_height += below(word, max_height - crop_height + 1)
    # Rounding may have left the allowed areas by a pixel.
    if crop_height * round(crop_height * aspect) < min_area:
        crop_height += 1
    if crop_height * round(crop_height * aspect) > max_area:
        crop_height -= 1
    crop_width = round(crop_height * aspect)
    fits = 0 < crop_height <= height and 0 < crop_width <= width
    if not fits or not min_area <= crop_height * crop_width <= max_area:
        return None
    return crop_height, crop_width


def torchvision_crop(
    rng: np.random.Generator, *, height: int, width: int, ranges: CropRanges
) -> Crop:
    """Draws a crop as `torchvision.transforms.RandomResizedCrop` and timm do.

    The area is uniform, the aspect ratio uniform in its logarithm. After ten attempts that do not
    fit it is the largest crop in the middle with an allowed aspect ratio.

    Args:
        rng: The sample's random stream.
        height: Of the image.
        width: Of the image.
        ranges: What crops may be.
    """
    log_aspect = tuple(math.log(bound) for bound in ranges.aspect)
    for _ in range(_NUM_TORCHVISION_ATTEMPTS):
        words = raw_words(rng, 4)
        area = height * width * uniform(words[0], low=ranges.area[0], high=ranges.area[1])
        aspect = math.exp(uniform(words[1], low=log_aspect[0], high=log_aspect[1]))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return Crop(
                top=below(words[2], height - crop_height + 1),
                left=below(words[3], width - crop_width + 1),
                height=crop_height,
                width=crop_width,
            )
    # At least one pixel: torchvision gives none where the image is one pixel high or wide.
    crop_height, crop_width = height, width
    if width / height < ranges.aspect[0]:
        crop_height = max(1, round(width / ranges.aspect[0]))
    elif width / height > ranges.aspect[1]:
        crop_width = max(1, round(height * ranges.aspect[1]))
    return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)
