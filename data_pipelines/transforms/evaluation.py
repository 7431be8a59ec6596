"""What is done to images in evaluation: resized and cut to one size, nothing random.

The sizes are those of 224 pixels, scaled: a size of 384 takes the same part of the image.
"""

import math
from dataclasses import dataclass

import numpy as np

from data_pipelines.transforms.presets import Image
from data_pipelines.transforms.resampling import (
    resize_area,
    resize_bicubic,
    resize_bicubic_antialiased,
    resize_bilinear,
    resize_bilinear_antialiased,
)

# Of images with a greater ratio of the sides only the middle is resized, and with a short side of
# 256 pixels none takes more than 3 MB.
_MAX_ASPECT = 16


@dataclass(frozen=True)
class ResizeSmallArea:
    """Google's vision transformers: big_vision's `resize_small(256)|central_crop(224)`.

    Resizes by averaging areas until the shorter side is 8/7 of `size`, and takes the middle.

    Attributes:
        size: Height and width of the result.
    """

    size: int

    def __call__(self, image: Image) -> Image:
        """Returns the middle of the resized image."""
        image = _bounded(image)
        # In float32 and to the nearest even number, as there.
        factor = np.float32(self.size * 8 // 7) / np.float32(min(image.shape[:2]))
        height, width = (int(np.rint(np.float32(side) * factor)) for side in image.shape[:2])
        resized = resize_area(image, height=height, width=width)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return resized[top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class CentreSquare:
    """google-research/sam's `preprocess_for_eval`.

    The square in the middle whose side is 7/8 of the image's shorter one, bicubic.

    Attributes:
        size: Height and width of the result.
    """

    size: int

    def __call__(self, image: Image) -> Image:
        """Returns the resized middle of the image."""
        height, width = image.shape[:2]
        side = max(1, int(np.float32(0.875) * np.float32(min(height, width))))
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        part = image[top : top + side, left : left + side]
        return resize_bicubic(part, height=self.size, width=self.size)


@dataclass(frozen=True)
class ResizeShortEdge:
    """The evaluation of torchvision and timm: `Resize(size / share)`, `CenterCrop(size)`.

    Attributes:
        size: Height and width of the result.
        share: Of the shorter side that the result shows; timm calls it `crop_pct`.
        bicubic: Bicubic instead of bilinear; both antialiased.
    """

    size: int
    share: float
    bicubic: bool

    def __call__(self, image: Image) -> Image:
        """Returns the middle of the resized image."""
        image = _bounded(image)
        height, width = image.shape[:2]
        short = math.floor(self.size / self.share)
        if height <= width:
            height, width = short, int(short * width / height)
        else:
            height, width = int(short * height / width), short
        resize = resize_bicubic_antialiased if self.bicubic else resize_bilinear_antialiased
        resized = resize(image, height=height, width=width)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return resized[top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class Squash:
    """The fine-tuning of google-research/vision_transformer: the whole image, bilinear.

    Attributes:
        size: Height and width of the result, whatever the aspect ratio of the image.
    """

    size: int

    def __call__(self, image: Image) -> Image:
        """Returns the resized image."""
        return resize_bilinear(image, height=self.size, width=self.size)


def _bounded(image: Image) -> Image:
    """Returns the middle of an image that is very much longer than it is wide, else the image.

    Its short side is scaled to a certain size, so an image of 1 x 20000 pixels would take 4 GB
    though only its middle is looked at. What is cut off is the same on both sides, so the middle
    stays where it is, but for rounding.
    """
    cuts = [max(0, side - _MAX_ASPECT * min(image.shape[:2])) // 2 for side in image.shape[:2]]
    height, width = image.shape[:2]
    return image[cuts[0] : height - cuts[0], cuts[1] : width - cuts[1]]
