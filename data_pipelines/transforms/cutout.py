"""Cutout: a square of every image is blanked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.transforms.presets import BatchAugmentation, Images
from data_pipelines.transforms.random_words import below_array


@dataclass(frozen=True)
class Cutout:
    """Augments images and then blanks a square of each.

    "Improved Regularization of Convolutional Neural Networks with Cutout" (DeVries and Taylor,
    2017), as google-research/sam has it: the centre is any pixel, and what reaches beyond the image
    is left out. There the square is zero after normalising; here, before it, it has the mean.

    Attributes:
        before: What is done before, from the words before those of the centre.
        length: Side of the square in pixels, even.
        fill: The blank pixel, of as many channels as the images; None is black.
    """

    before: BatchAugmentation
    length: int
    fill: tuple[int, ...] | None

    def __call__(self, images: Images, words: NDArray[np.uint64]) -> Images:
        """Augments each image with its own words.

        Args:
            images: uint8, (samples, height, width, channels).
            words: Those of what is done before, and for row and column of the centre,
                (samples, before.num_words + 2).

        Returns:
            The same shape, in new memory.

        Raises:
            UserError: The images have another number of channels than the blank pixel.
        """
        height, width, num_channels = images.shape[1:]
        if self.fill is not None and len(self.fill) != num_channels:
            raise UserError(
                f"cutout: the images have {num_channels} channels, but their mean is given for "
                f"{len(self.fill)}; choose other statistics, such as statistics=none"
            )
        num_words = self.before.num_words
        result = np.ascontiguousarray(self.before.augment(images, words[:, :num_words]))
        rows = self._covered(words[:, num_words], height)
        columns = self._covered(words[:, num_words + 1], width)
        covered = rows[:, :, np.newaxis] & columns[:, np.newaxis, :]
        # Whole pixels, not single bytes: that takes a seventh of the time.
        pixel = f"V{num_channels}"
        blank = np.array(self.fill or (0,) * num_channels, np.uint8)
        result.view(pixel)[..., 0][covered] = blank.view(pixel)[0]
        return result

    def _covered(self, words: NDArray[np.uint64], size: int) -> NDArray[np.bool_]:
        """Returns which rows or columns the square covers, (samples, size)."""
        starts = below_array(words, size)[:, np.newaxis] - self.length // 2
        places = np.arange(size)
        covered: NDArray[np.bool_] = (places >= starts) & (places < starts + self.length)
        return covered


def with_cutout(
    augmentation: BatchAugmentation, *, length: int, mean: tuple[float, ...] | None
) -> BatchAugmentation:
    """Returns an augmentation that cuts a square out, too.

    The words of the augmentation stay the same, so that it does the same as without.

    Args:
        augmentation: What is done before.
        length: Side of the square in pixels, even.
        mean: Of the pixels scaled to [0, 1], per channel; what is cut out becomes the byte nearest
            to it. None makes it black.
    """
    fill = None if mean is None else tuple(round(255 * channel) for channel in mean)
    return BatchAugmentation(
        num_words=augmentation.num_words + 2,
        augment=Cutout(augmentation, length=length, fill=fill),
    )
