"""What a transform preset consists of."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class TransformPreset:
    """A named recipe from stored images to what the model sees.

    The workers' part ends with uint8 images of one shape; scaling and normalising floats is left to
    `normalise`, on the device. The functions get read-only images, and are module-level ones, so
    that they can be sent to worker processes.

    Attributes:
        name: What users call it.
        augment: For training: (image, random stream) to image; uint8 (height, width, channels).
            It draws from the given stream alone.
        prepare: For evaluation: image to image.
        mean: Per channel, of pixels scaled to [0, 1]; None subtracts nothing.
        std: Per channel, likewise; None divides by nothing.
    """

    name: str
    augment: Callable[[Image, np.random.Generator], Image]
    prepare: Callable[[Image], Image]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
