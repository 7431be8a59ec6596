"""Resizing uint8 images.

Each function has the filter of the library that the published recipe used, and an implementation
whose result is the same on every processor: OpenCV's bilinear comes in a bit-exact variant, its
bicubic is bit-exact without Intel's IPP, and torch and Pillow compute with integers.
"""

from typing import Any

import cv2
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from data_pipelines.transforms.presets import Image

# OpenCV splits large images over a pool of threads of its own, which a forked worker does not have
# and would wait for; the cores are shared out over the workers anyway.
cv2.setNumThreads(1)


def resize_bilinear(image: Image, *, height: int, width: int) -> Image:
    """Resizes with two taps a side, whatever the scale: `tf.image.resize(antialias=False)`.

    Args:
        image: uint8, (height, width, channels).
        height: Of the result.
        width: Of the result.

    Returns:
        The rounded result, within 1 of the real number.
    """
    return _with_opencv(image, height, width, cv2.INTER_LINEAR_EXACT)


def resize_bicubic(image: Image, *, height: int, width: int) -> Image:
    """Resizes with four taps a side (a = -0.75), whatever the scale.

    `torch.nn.functional.interpolate(mode="bicubic", antialias=False)`, clipped to bytes. TensorFlow
    1 has the same filter, but samples at the upper left corner of each pixel instead of its centre,
    which moves the image by half the scale factor; that is not repeated here.
    """
    # It is a setting of the thread. With it on, the last bit depends on the processor.
    used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        return _with_opencv(image, height, width, cv2.INTER_CUBIC)
    finally:
        cv2.ipp.setUseIPP(used)


def resize_area(image: Image, *, height: int, width: int) -> Image:
    """Averages the part of the image that each pixel of the result covers.

    `tf.image.resize(method="area")`, for reducing and for enlarging.
    """
    return _with_opencv(image, height, width, cv2.INTER_AREA)


def resize_bilinear_antialiased(image: Image, *, height: int, width: int) -> Image:
    """Resizes with a triangle that widens with the scale, as Pillow and torchvision do.

    Within 1 of Pillow's result, in less than half the time.
    """
    return _with_torch(image, height, width)


def resize_bicubic_antialiased(image: Image, *, height: int, width: int) -> Image:
    """Resizes with a cubic (a = -0.5) that widens with the scale: Pillow's own.

    torch's is four times as fast, but differs from it by up to 2; models that were published with
    their accuracy were evaluated with Pillow's.
    """
    if image.shape[2] != 3:
        # Each by itself, as the other filters do: Pillow takes the fourth channel for transparency.
        channels = [_with_pillow(image[:, :, i], height, width) for i in range(image.shape[2])]
        return np.stack(channels, axis=2)
    return _with_pillow(image, height, width)


def flip_left_right(image: Image) -> Image:
    """Mirrors an image."""
    return _with_channels(cv2.flip(image, 1))


def _with_opencv(image: Image, height: int, width: int, interpolation: int) -> Image:
    return _with_channels(cv2.resize(image, (width, height), interpolation=interpolation))


def _with_channels(image: NDArray[Any]) -> Image:
    """Puts back the dimension of a single channel, which OpenCV drops."""
    return image if image.ndim == 3 else image[:, :, np.newaxis]


def _with_pillow(image: Image, height: int, width: int) -> Image:
    pixels = PIL.Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(pixels.resize((width, height), PIL.Image.Resampling.BICUBIC))


def _with_torch(image: Image, height: int, width: int) -> Image:
    # A copy, since torch does not take read-only memory; it would copy a crop anyway.
    # torch's `unsqueeze` gives the new dimension a stride by which it knows that channels are last
    # in memory; NumPy's gives 0, and the result would come back with its channels first.
    pixels = torch.from_numpy(np.array(image)).unsqueeze(0).permute(0, 3, 1, 2)
    resized = F.interpolate(
        pixels, size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )
    result: Image = resized[0].permute(1, 2, 0).numpy()
    return result
