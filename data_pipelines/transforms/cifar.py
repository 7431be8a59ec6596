"""Shifted and mirrored small images, augmented a batch at a time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.transforms.presets import BatchAugmentation, Images
from data_pipelines.transforms.random_words import below_array
from data_pipelines.transforms.resampling import flip_left_right

_PADDING = 4
_NUM_SHIFTS = 2 * _PADDING + 1


@dataclass(frozen=True)
class ShiftAndFlip:
    """Pads by 4 pixels on all sides, cuts out the original size at random, mirrors half of them.

    Attributes:
        reflects: Pads with the image mirrored at its border, without repeating the border itself
            (`tf.pad(mode="REFLECT")`, google-research/sam); otherwise with zeros (the custom of
            torchvision's users).
    """

    reflects: bool

    def __call__(self, images: Images, words: NDArray[np.uint64]) -> Images:
        """Augments each image with its own words.

        Args:
            images: uint8, (samples, height, width, channels).
            words: For flip, row and column, (samples, 3).

        Returns:
            The same shape, in new memory.

        Raises:
            UserError: The images are too small to be mirrored so far.
        """
        num_images, height, width, num_channels = images.shape
        if self.reflects and min(height, width) <= _PADDING:
            raise UserError(
                f"cifar_basic: images of {height} x {width} pixels cannot be padded by {_PADDING} "
                f"mirrored ones; they need more than {_PADDING} a side, or cifar_zero"
            )
        padded = _padded(images, reflects=self.reflects)
        # All positions of all images, as rows of bytes; indexing then copies one row at a time.
        row_bytes = padded.strides[1]
        positions = np.lib.stride_tricks.as_strided(
            padded,
            (num_images, _NUM_SHIFTS, _NUM_SHIFTS, height, width * num_channels),
            (padded.strides[0], row_bytes, num_channels, row_bytes, 1),
            writeable=False,
        )
        rows, columns = (below_array(words[:, place], _NUM_SHIFTS) for place in (1, 2))
        taken = positions[np.arange(num_images), rows, columns]
        shifted: Images = taken.reshape(images.shape)
        flips = below_array(words[:, 0], 2) == 1
        if flips.any():
            # One image after the other is one high image to whoever mirrors its columns.
            high = shifted[flips].reshape(-1, width, num_channels)
            shifted[flips] = flip_left_right(high).reshape(-1, height, width, num_channels)
        return shifted


def _padded(images: Images, *, reflects: bool) -> Images:
    """Pads all images; `np.pad` gives the same and takes twice as long."""
    num_images, height, width, num_channels = images.shape
    shape = (num_images, height + 2 * _PADDING, width + 2 * _PADDING, num_channels)
    padded = np.empty(shape, np.uint8) if reflects else np.zeros(shape, np.uint8)
    # Whole pixels are moved, not single bytes.
    pixels, inner = _pixels(padded), _pixels(images)
    pixels[:, _PADDING : _PADDING + height, _PADDING : _PADDING + width] = inner
    if reflects:
        last_row, last_column = _PADDING + height - 1, _PADDING + width - 1
        for distance in range(1, _PADDING + 1):
            pixels[:, :, _PADDING - distance] = pixels[:, :, _PADDING + distance]
            pixels[:, :, last_column + distance] = pixels[:, :, last_column - distance]
        for distance in range(1, _PADDING + 1):
            padded[:, _PADDING - distance] = padded[:, _PADDING + distance]
            padded[:, last_row + distance] = padded[:, last_row - distance]
    return padded


def _pixels(images: Images) -> NDArray[np.void]:
    """Views each pixel as one item, (samples, height, width)."""
    return np.ascontiguousarray(images).view(f"V{images.shape[3]}")[..., 0]


CIFAR_BASIC = BatchAugmentation(num_words=3, augment=ShiftAndFlip(reflects=True))
CIFAR_ZERO = BatchAugmentation(num_words=3, augment=ShiftAndFlip(reflects=False))
