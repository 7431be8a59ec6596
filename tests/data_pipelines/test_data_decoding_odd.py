"""Images and arrays that are unusual or damaged in ways that libraries do not expect."""

import io
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from shards import npy, png

from data_pipelines.decoding.array_files import (
    decode_npy_image,
    decode_tokens,
    image_shape_of_npy,
    shape_of_tokens,
)
from data_pipelines.decoding.compressed_images import (
    decode_compressed_image,
    image_shape_of_compressed,
)

GREY = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY).resize((64, 48)).save(stream, "JPEG", subsampling=0)
    return stream.getvalue()


def test_jpegs_with_a_rare_subsampling_are_read() -> None:
    """4:4:1: chroma has a quarter of the rows; simplejpeg has no name for it."""
    content = bytearray(jpeg())
    frame = content.index(b"\xff\xc0")
    content[frame + 11] = 0x14  # sampling factors of the first component, 1 x 4
    payload = bytes(content)
    with pytest.raises(KeyError):
        simplejpeg.decode_jpeg_header(payload)
    assert image_shape_of_compressed(payload) == (48, 64, 3)
    expected = np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))
    assert np.array_equal(decode_compressed_image(payload), expected)


def with_header(text: str) -> bytes:
    header = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(12)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 3",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 3), }}\n",
        "{'descr': (), 'fortran_order': False, 'shape': (2, 2, 3)}\n",
        "{'descr': [[]], 'fortran_order': False, 'shape': (2, 2, 3)}\n",
        "{'descr': '|u1', 'fortran_order': False, {}: (2, 2, 3)}\n",
        "{[]: 1}\n",
        "'''\n",
        "  {\n 1}\n  2",
        "(" * 3000,
        "\0",
        "",
    ],
)
def test_headers_that_are_no_headers(header: str) -> None:
    for decode in (decode_npy_image, image_shape_of_npy, decode_tokens, shape_of_tokens):
        with pytest.raises(ValueError, match=r"."):
            decode(with_header(header))


@pytest.mark.filterwarnings("ignore")  # of Python about what it is given to parse
def test_damage_is_always_a_value_error() -> None:
    random.seed(0)
    images: list[Callable[[bytes], object]] = [decode_compressed_image, image_shape_of_compressed]
    arrays: list[Callable[[bytes], object]] = [decode_npy_image, image_shape_of_npy]
    num_refused = 0
    for original, decoders in ((jpeg(), images), (png(GREY), images), (npy(GREY), arrays)):
        for _ in range(400):
            content = bytearray(original)
            for _ in range(random.randint(1, 4)):
                place = random.randrange(random.choice((len(content), 120)))
                content[place] = random.randrange(256)
            for decode in decoders:
                try:
                    decode(bytes(content))
                except ValueError:
                    num_refused += 1
    assert num_refused > 100
