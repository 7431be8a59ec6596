"""Images that are not plain JPEG, through Pillow."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from data_pipelines.decoding.image_limits import check_pixels
from data_pipelines.decoding.webp_header import webp_size

# What Pillow's decoders raise on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def decode_with_pillow(payload: bytes) -> NDArray[np.uint8]:
    """Decodes a JPEG, PNG or WebP image to RGB, (height, width, 3).

    Raises:
        ValueError: See `compressed_images.decode_compressed_image`.
    """
    kind, image = _opened(payload)
    try:
        if image.mode.startswith("I"):
            # Pillow would clip 16 bits to 8 here; of colour images it keeps the upper 8 itself.
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except _DAMAGE as error:
        raise ValueError(f"damaged or cut short {kind}: {error}") from error


def size_from_header(payload: bytes) -> tuple[int, int]:
    """Returns (height, width) of an image, from the header of its file.

    Raises:
        ValueError: See `compressed_images.decode_compressed_image`.
    """
    if _kind(payload) == "WebP":
        height, width = webp_size(payload)
        check_pixels(height=height, width=width)
        return height, width
    _, image = _opened(payload)
    return image.height, image.width


def _opened(payload: bytes) -> tuple[str, Image]:
    # The readers of the three formats and no other: `Image.open` would try them all, among them
    # some that start programs, and warns about large images instead of refusing them.
    stream = io.BytesIO(payload)
    kind = _kind(payload)
    if kind == "WebP":
        size_from_header(payload)
    image: JpegImageFile | PngImageFile | WebPImageFile
    try:
        if kind == "JPEG":
            image = JpegImageFile(stream)
        elif kind == "PNG":
            image = PngImageFile(stream)
        else:
            image = WebPImageFile(stream)
    except _DAMAGE as error:
        raise ValueError(f"damaged or cut short {kind}: {error}") from error
    check_pixels(height=image.height, width=image.width)
    num_frames = getattr(image, "n_frames", 1)
    if num_frames != 1:
        raise ValueError(f"an animation of {num_frames} frames, not an image")
    return kind, image


def _kind(payload: bytes) -> str:
    if payload.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if payload.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if payload.startswith(b"RIFF") and payload[8:12] == b"WEBP":
        return "WebP"
    raise ValueError(f"neither JPEG, PNG nor WebP: the file begins with {payload[:12]!r}")
