"""Images as they are stored."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.order import augmentation_rng
from data_pipelines.transforms.presets import AugmentImage, Image, PrepareImage


def unprepared(image: Image) -> Image:
    """Returns the image."""
    return image


@dataclass(frozen=True)
class Unaugmented:
    """Prepares images for training as for evaluation.

    Attributes:
        prepare: What evaluation does.
    """

    prepare: PrepareImage

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Returns the prepared image; draws nothing."""
        return self.prepare(image)


def augmented(
    augment: AugmentImage, image: Image, *, seed: int, epoch: int, sample_id: int
) -> Image:
    """Augments an image with the random stream that belongs to the sample in the epoch.

    Making that takes longer than all else that `none` does, so it gets none.
    """
    if isinstance(augment, Unaugmented):
        return augment.prepare(image)
    return augment(image, augmentation_rng(seed, epoch, sample_id))
