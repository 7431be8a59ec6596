"""The decoders of single columns, by the column's extension.

A decoder raises `ValueError` saying what is wrong with the payload; who calls it knows the shard
and the key and adds them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from data_pipelines.decoding.array_files import (
    decode_npy_image,
    decode_tokens,
    image_shape_of_npy,
    shape_of_tokens,
)
from data_pipelines.decoding.class_numbers import decode_class_number
from data_pipelines.decoding.compressed_images import (
    decode_compressed_image,
    image_shape_of_compressed,
)


@dataclass(frozen=True)
class ContentDecoder:
    """How the column is decoded that holds what the model sees.

    Attributes:
        kind: What it holds.
        decode: Payload to array; `ValueError` if it cannot.
        shape: Payload to the array's shape, from the header alone; `ValueError` likewise.
    """

    kind: Literal["image", "tokens"]
    decode: Callable[[bytes], NDArray[Any]]
    shape: Callable[[bytes], tuple[int, ...]]


_COMPRESSED = ContentDecoder("image", decode_compressed_image, image_shape_of_compressed)

# By the last part of the column's name; `tokens.npy` goes by its whole name.
IMAGE_DECODERS: dict[str, ContentDecoder] = {
    "jpg": _COMPRESSED,
    "jpeg": _COMPRESSED,
    "png": _COMPRESSED,
    "webp": _COMPRESSED,
    "npy": ContentDecoder("image", decode_npy_image, image_shape_of_npy),
}
TOKENS_COLUMN = "tokens.npy"
TOKENS_DECODER = ContentDecoder("tokens", decode_tokens, shape_of_tokens)
LABEL_DECODERS: dict[str, Callable[[bytes], int]] = {"cls": decode_class_number}
