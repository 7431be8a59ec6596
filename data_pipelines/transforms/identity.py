"""Images as they are stored."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.transforms.presets import Image, PrepareImage


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
