"""JPEG, PNG and WebP images.

What a payload is says its content and not the extension of its column: image collections have PNG
files whose names end in .jpg. Every image becomes RGB, uint8 (height, width, 3):

- The stored pixels are taken as they are: an orientation in the EXIF data is not applied, as
  TensorFlow, torchvision and timm do not apply it either.
- Grey and palette images, CMYK and YCCK are converted to RGB, transparency is left out, and of 16
  bits a channel the upper 8 are kept.

libjpeg-turbo decodes JPEG, with its default, accurate transform and smooth chroma upsampling:
through `simplejpeg` in most cases, and through Pillow where that gives up (CMYK, or data that
libjpeg warns about but reads). Both give the same pixels; so do OpenCV and torchvision, which are
slower (`tests/benchmarks/decoders.py`).
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data_pipelines.decoding.image_limits import check_pixels
from data_pipelines.decoding.pillow_images import decode_with_pillow, size_from_header

_JPEG_START = b"\xff\xd8\xff"
# Colour spaces libjpeg-turbo converts to RGB.
_FAST_COLOURSPACES = {"RGB", "YCbCr", "Gray"}


def decode_compressed_image(payload: bytes) -> NDArray[np.uint8]:
    """Decodes a JPEG, PNG or WebP image.

    Args:
        payload: The bytes of the file.

    Returns:
        RGB, (height, width, 3).

    Raises:
        ValueError: The payload is none of these, is damaged or cut short, or has more pixels than
            `image_limits.MAX_PIXELS`, which is found out before memory is taken for them.
    """
    if payload.startswith(_JPEG_START) and _fast_jpeg_size(payload) is not None:
        try:
            image: NDArray[np.uint8] = simplejpeg.decode_jpeg(payload, colorspace="RGB")
        except ValueError:
            # Some encoders write files that libjpeg warns about and reads all the same. Pillow
            # reads those too, and says what is wrong with the others.
            return decode_with_pillow(payload)
        return image
    return decode_with_pillow(payload)


def image_shape_of_compressed(payload: bytes) -> tuple[int, int, int]:
    """Returns the shape an image will have, from the header of its file.

    Raises:
        ValueError: See `decode_compressed_image`; damage behind the header is not found.
    """
    size = _fast_jpeg_size(payload) if payload.startswith(_JPEG_START) else None
    height, width = size or size_from_header(payload)
    return height, width, 3


def _fast_jpeg_size(payload: bytes) -> tuple[int, int] | None:
    """Returns (height, width) of a JPEG that `simplejpeg` can decode; None for others."""
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(payload)
    except (ValueError, KeyError):  # KeyError: a chroma subsampling that it has no name for, 4:4:1
        return None
    if colourspace not in _FAST_COLOURSPACES:
        return None
    check_pixels(height=height, width=width)
    return height, width
