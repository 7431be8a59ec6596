"""What a transform preset consists of."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.transforms.random_words import raw_words

# uint8, (height, width, channels).
Image = NDArray[np.uint8]
# uint8, (samples, height, width, channels).
Images = NDArray[np.uint8]
AugmentImage = Callable[[Image, np.random.Generator], Image]
PrepareImage = Callable[[Image], Image]


@dataclass(frozen=True)
class BatchAugmentation:
    """Augments images of one size together, from a fixed number of random words each.

    Attributes:
        num_words: How many words of its stream an image takes.
        augment: (images, words (samples, num_words)) to images of the same shape, in new memory.
    """

    num_words: int
    augment: Callable[[Images, NDArray[np.uint64]], Images]

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Augments one image with the next words of its stream."""
        words = np.array([raw_words(rng, self.num_words)], np.uint64)
        augmented: Image = self.augment(image[np.newaxis], words)[0]
        return augmented


@dataclass(frozen=True)
class TransformPreset:
    """A named recipe from stored images to what the model sees.

    The workers' part ends with uint8 images of one shape; scaling and normalising floats is left to
    `normalise`, on the device. The functions get read-only images, draw from the given stream
    alone, and can be pickled, so that they can be sent to worker processes.

    Attributes:
        name: What users call it, with its parameters.
        augment: For training: (image, random stream) to image; uint8 (height, width, channels).
        prepare: For evaluation: image to image.
        mean: Per channel, of pixels scaled to [0, 1]; None subtracts nothing.
        std: Per channel, likewise; None divides by nothing.
        size: (height, width) of the result; None when it is that of the stored image.
        augment_batch: `augment` of a whole batch at once, with the same result bit for bit, where
            that is faster: for small images. Its words come from `augmentation_words`.
    """

    name: str
    augment: AugmentImage
    prepare: PrepareImage
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size: tuple[int, int] | None = None
    augment_batch: BatchAugmentation | None = None
