"""Random crops resized to one size, and mirrored half of the time: what training on ImageNet uses.

"Inception-style preprocessing" names different things in different places; these are three of them,
each from the code that published results were made with. Crops are cut before they are resized.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.transforms.evaluation import CentreSquare
from data_pipelines.transforms.presets import Image
from data_pipelines.transforms.random_crops import (
    Crop,
    CropRanges,
    tensorflow_crop,
    torchvision_crop,
)
from data_pipelines.transforms.random_words import below, raw_words
from data_pipelines.transforms.resampling import (
    flip_left_right,
    resize_bicubic,
    resize_bilinear,
    resize_bilinear_antialiased,
)


@dataclass(frozen=True)
class InceptionViT:
    """Google's vision transformers: big_vision's `decode_jpeg_and_inception_crop`, `flip_lr`.

    Areas of 5 to 100 % and aspect ratios of 0.75 to 1.33 by TensorFlow's sampler, the whole image
    after 100 attempts; bilinear without antialiasing. TensorFlow cuts the fraction of a pixel off,
    here it is rounded.

    Attributes:
        size: Height and width of the result.
    """

    size: int

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Returns a random part of the image."""
        flips = _draw_flip(rng)
        crop = tensorflow_crop(
            rng,
            height=image.shape[0],
            width=image.shape[1],
            ranges=CropRanges(area=(0.05, 1), aspect=(0.75, 1.33)),
            min_covered=0,
            num_attempts=100,
        )
        part = image if crop is None else _cut(image, crop)
        return _flipped(resize_bilinear(part, height=self.size, width=self.size), flips)


@dataclass(frozen=True)
class InceptionTorchvision:
    """The default of torchvision and timm: `RandomResizedCrop`, `RandomHorizontalFlip`.

    Areas of 8 to 100 %, aspect ratios of 3/4 to 4/3; bilinear with antialiasing.

    Attributes:
        size: Height and width of the result.
    """

    size: int

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Returns a random part of the image."""
        flips = _draw_flip(rng)
        crop = torchvision_crop(
            rng,
            height=image.shape[0],
            width=image.shape[1],
            ranges=CropRanges(area=(0.08, 1), aspect=(3 / 4, 4 / 3)),
        )
        part = _cut(image, crop)
        return _flipped(resize_bilinear_antialiased(part, height=self.size, width=self.size), flips)


@dataclass(frozen=True)
class InceptionSAM:
    """The residual networks of google-research/sam: `preprocess_for_train`.

    Areas of 8 to 100 %, of which a tenth of the image has to be covered, and aspect ratios of 3/4
    to 4/3 by TensorFlow's sampler. After 10 attempts, and where the crop is the whole image, it is
    the square in the middle that evaluation uses. Bicubic; what overshoots is clipped to bytes.

    Attributes:
        size: Height and width of the result.
    """

    size: int

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Returns a random part of the image."""
        flips = _draw_flip(rng)
        height, width = image.shape[:2]
        crop = tensorflow_crop(
            rng,
            height=height,
            width=width,
            ranges=CropRanges(area=(0.08, 1), aspect=(3 / 4, 4 / 3)),
            min_covered=0.1,
            num_attempts=10,
        )
        if crop is None or (crop.height, crop.width) == (height, width):
            return _flipped(CentreSquare(self.size)(image), flips)
        part = _cut(image, crop)
        return _flipped(resize_bicubic(part, height=self.size, width=self.size), flips)


def _draw_flip(rng: np.random.Generator) -> bool:
    return below(raw_words(rng, 1)[0], 2) == 1


def _flipped(image: Image, flips: bool) -> Image:
    return flip_left_right(image) if flips else image


def _cut(image: Image, crop: Crop) -> Image:
    return image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
