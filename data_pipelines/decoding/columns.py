"""The decoders of single columns, by the column's extension.

A decoder raises `ValueError` saying what is wrong with the payload; who calls it knows the shard
and the key and adds them.
"""

import functools
import io
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def decode_npy_image(payload: bytes) -> NDArray[np.uint8]:
    """Decodes an image stored as an array file, without copying it.

    Args:
        payload: The bytes of a `.npy` file that holds uint8, (height, width, channels).

    Returns:
        A read-only view of the payload.

    Raises:
        ValueError: The bytes are no such file, or the array is not such an image.
    """
    # Magic string and version take 8 bytes, the length of the rest of the header two more.
    header_size = 10 + int.from_bytes(payload[8:10], "little")
    shape, order = _npy_layout(payload[:header_size])
    return np.frombuffer(payload, np.uint8, offset=header_size).reshape(shape, order=order)


# Parsing a header takes longer than reading a small image, and the images of a data set share few.
@functools.lru_cache(maxsize=1024)
def _npy_layout(header: bytes) -> tuple[tuple[int, ...], Literal["C", "F"]]:
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"version {version} of the .npy format, which images never need")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.uint8 or len(shape) != 3:
        raise ValueError(
            f"an image is uint8 of shape (height, width, channels), "
            f"this is {dtype} of shape {shape}"
        )
    return shape, "F" if is_fortran else "C"


def decode_class_number(payload: bytes) -> int:
    """Decodes a class number written in decimal digits.

    Raises:
        ValueError: There is anything else than digits and surrounding white space.
    """
    digits = payload.strip()
    if not digits.isdigit():
        raise ValueError(f"a class number is decimal digits, this is {payload[:40]!r}")
    return int(digits)


IMAGE_DECODERS: dict[str, Callable[[bytes], NDArray[np.uint8]]] = {"npy": decode_npy_image}
LABEL_DECODERS: dict[str, Callable[[bytes], int]] = {"cls": decode_class_number}
