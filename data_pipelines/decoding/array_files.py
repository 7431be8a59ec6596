"""Images and tokens stored as array files (`.npy`), read without copying and without pickle."""

import functools
import io
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


def decode_npy_image(payload: bytes) -> NDArray[np.uint8]:
    """Decodes an image stored as an array file.

    Args:
        payload: The bytes of a `.npy` file that holds uint8, (height, width, channels).

    Returns:
        A read-only view of the payload.

    Raises:
        ValueError: The bytes are no such file, or the array is not such an image.
    """
    image_shape_of_npy(payload)
    return _view(payload)


def image_shape_of_npy(payload: bytes) -> tuple[int, int, int]:
    """Returns the shape of an image stored as an array file.

    Raises:
        ValueError: See `decode_npy_image`; the size of the payload is not looked at.
    """
    shape, dtype, _ = _layout(_header(payload))
    if dtype != np.uint8 or len(shape) != 3 or 0 in shape:
        raise ValueError(
            f"an image is uint8 of shape (height, width, channels), "
            f"this is {dtype} of shape {shape}"
        )
    return shape[0], shape[1], shape[2]


def decode_tokens(payload: bytes) -> NDArray[np.int32]:
    """Decodes the tokens of a text.

    Args:
        payload: The bytes of a `.npy` file that holds little-endian int32, (rows, length).

    Returns:
        A read-only view of the payload.

    Raises:
        ValueError: The bytes are no such file, or the array holds something else.
    """
    shape_of_tokens(payload)
    return _view(payload)


def shape_of_tokens(payload: bytes) -> tuple[int, int]:
    """Returns (rows, length) of the tokens of a text.

    Raises:
        ValueError: See `decode_tokens`; the size of the payload is not looked at.
    """
    shape, dtype, _ = _layout(_header(payload))
    if dtype != np.dtype("<i4") or len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"tokens are int32 of shape (rows, length), this is {dtype} of shape {shape}"
        )
    return shape[0], shape[1]


def _view(payload: bytes) -> NDArray[Any]:
    header = _header(payload)
    shape, dtype, order = _layout(header)
    num_bytes = math.prod(shape) * dtype.itemsize
    if len(payload) != len(header) + num_bytes:
        raise ValueError(
            f"{dtype} of shape {shape} takes {num_bytes} bytes, "
            f"but {len(payload) - len(header)} follow the header"
        )
    return np.frombuffer(payload, dtype, offset=len(header)).reshape(shape, order=order)


def _header(payload: bytes) -> bytes:
    # Magic string and version take 8 bytes, the length of the rest of the header two more.
    return payload[: 10 + int.from_bytes(payload[8:10], "little")]


# Parsing a header takes longer than reading a small image, and the samples of a data set share few.
@functools.lru_cache(maxsize=4096)
def _layout(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any], Literal["C", "F"]]:
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"version {version} of the .npy format, which samples never need")
    try:
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError:
        raise
    except Exception as error:
        # NumPy reads the header as Python source, and what Python says of that may be anything.
        raise ValueError(f"damaged .npy header: {type(error).__name__}: {error}") from error
    return shape, dtype, "F" if is_fortran else "C"
