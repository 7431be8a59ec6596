"""Decoding: every kind of image becomes RGB; what is wrong, odd or damaged in a file is said."""

import io
import pickle
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from shards import npy
from sklearn.datasets import load_sample_images
from torchvision.io import ImageReadMode, decode_jpeg

from data_pipelines import UserError
from data_pipelines.decoding import Sample, SampleDecoder, TextSample, image_limits, probe
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

# Odd sizes, so that the last blocks of pixels are not whole.
PHOTOGRAPH = np.ascontiguousarray(load_sample_images().images[0][37:200, 51:260])


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photograph(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(PHOTOGRAPH).convert(mode)


def by_pillow(payload: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))


JPEG = encoded(photograph(), "JPEG", quality=90)
PNG = encoded(photograph(), "PNG")
FILES = {
    "jpeg": JPEG,
    "jpeg 4:4:4": encoded(photograph(), "JPEG", quality=95, subsampling=0),
    "jpeg progressive": encoded(photograph(), "JPEG", progressive=True),
    "jpeg grey": encoded(photograph("L"), "JPEG"),
    "jpeg cmyk": encoded(photograph("CMYK"), "JPEG"),
    "png": PNG,
    "png grey": encoded(photograph("L"), "PNG"),
    "png palette": encoded(photograph().quantize(64), "PNG"),
    "png black and white": encoded(photograph("1"), "PNG"),
    "png transparent": encoded(photograph("RGBA"), "PNG"),
    "webp": encoded(photograph(), "WEBP"),
    "webp transparent": encoded(photograph("RGBA"), "WEBP", lossless=True, exact=True),
}


@pytest.mark.parametrize("payload", FILES.values(), ids=FILES)
def test_all_kinds_become_the_rgb_that_pillow_gives(payload: bytes) -> None:
    image = decode_compressed_image(payload)
    assert image.dtype == np.uint8
    assert image.shape == (*PHOTOGRAPH.shape[:2], 3) == image_shape_of_compressed(payload)
    assert np.array_equal(image, by_pillow(payload))
    # The header alone says the size.
    header = probe({"cls": b"7", "jpg": payload[:700]})
    assert (header.shape, header.label) == (image.shape, 7)
    # It is the photograph: in colour, or in grey, or at least in black and white.
    difference = np.abs(image.mean(axis=2) - PHOTOGRAPH.mean(axis=2)).mean()
    assert difference < (120 if payload is FILES["png black and white"] else 12)


@pytest.mark.parametrize("kind", ["jpeg", "jpeg 4:4:4", "jpeg progressive", "jpeg grey"])
def test_every_jpeg_decoder_gives_the_same_pixels(kind: str) -> None:
    image = decode_compressed_image(FILES[kind])
    bytes_read = np.frombuffer(FILES[kind], np.uint8)
    assert np.array_equal(cv2.imdecode(bytes_read, cv2.IMREAD_COLOR_RGB), image)
    by_torchvision = decode_jpeg(torch.from_numpy(bytes_read.copy()), mode=ImageReadMode.RGB)
    assert np.array_equal(by_torchvision.permute(1, 2, 0).numpy(), image)


def test_lossless_files_keep_every_pixel_whatever_their_column() -> None:
    for kind in ("png", "png transparent", "webp transparent"):
        sample = SampleDecoder.for_columns(["cls", "jpg"]).decode({"jpg": FILES[kind], "cls": b"3"})
        assert isinstance(sample, Sample)
        assert np.array_equal(sample.image, PHOTOGRAPH)


def test_grey_of_16_bits_keeps_the_upper_8() -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 13000
    stored = Image.frombytes("I;16", (3, 2), values.astype("<u2").tobytes())
    image = decode_compressed_image(encoded(stored, "PNG"))
    assert np.array_equal(image, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_what_changes_no_pixel_of_a_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned; an orientation is not applied
    turned = encoded(photograph(), "JPEG", quality=90, exif=exif)
    assert JPEG.endswith(b"\xff\xd9")
    # Bytes before the end marker that belong to nothing; files of ImageNet have them.
    untidy = JPEG[:-2] + b"\x00\x01\x02\x03" + JPEG[-2:]
    for payload in (turned, untidy):
        assert payload != JPEG
        assert np.array_equal(decode_compressed_image(payload), decode_compressed_image(JPEG))


def test_jpegs_with_a_rare_subsampling_are_read() -> None:
    """4:4:1: chroma has a quarter of the rows; simplejpeg has no name for it."""
    content = bytearray(encoded(photograph().resize((64, 48)), "JPEG", subsampling=0))
    frame = content.index(b"\xff\xc0")
    content[frame + 11] = 0x14  # sampling factors of the first component, 1 x 4
    payload = bytes(content)
    with pytest.raises(KeyError):
        simplejpeg.decode_jpeg_header(payload)
    assert image_shape_of_compressed(payload) == (48, 64, 3)
    assert np.array_equal(decode_compressed_image(payload), by_pillow(payload))


@pytest.mark.parametrize("kind", ["jpeg", "jpeg progressive", "jpeg cmyk", "png", "webp"])
def test_cut_files_are_refused(kind: str) -> None:
    payload = FILES[kind]
    for length in (len(payload) // 2, len(payload) - 40):
        with pytest.raises(ValueError, match=r"damaged or cut short (JPEG|PNG|WebP): "):
            decode_compressed_image(payload[:length])


@pytest.mark.parametrize("payload", [b"", b"GIF89a" + bytes(40), b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_other_formats_are_refused(payload: bytes) -> None:
    for read in (decode_compressed_image, image_shape_of_compressed):
        with pytest.raises(ValueError, match="neither JPEG, PNG nor WebP: the file begins with b'"):
            read(payload)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    frames = [photograph(), photograph().rotate(180)]
    payload = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="an animation of 2 frames"):
        decode_compressed_image(payload)


def huge_jpeg(height: int, width: int, payload: bytes = JPEG) -> bytes:
    place = payload.index(b"\xff\xc0") + 5
    return payload[:place] + struct.pack(">HH", height, width) + payload[place + 4 :]


def huge_png(height: int, width: int) -> bytes:
    header = b"IHDR" + struct.pack(">II", width, height) + PNG[24:29]
    return PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


def huge_webp_extended(height: int, width: int) -> bytes:
    # Lossless with an extended header: where canvases of any size can be announced.
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + size
    content = b"WEBP" + chunk + FILES["webp transparent"][12:]
    return b"RIFF" + struct.pack("<I", len(content)) + content


@pytest.mark.parametrize("make", [huge_jpeg, huge_png, huge_webp_extended])
def test_huge_images_are_refused_by_their_header(make: Callable[[int, int], bytes]) -> None:
    honest = make(*PHOTOGRAPH.shape[:2])
    assert np.array_equal(decode_compressed_image(honest), by_pillow(honest))
    for read in (decode_compressed_image, image_shape_of_compressed):
        with pytest.raises(ValueError, match="announces 60000 x 50000 pixels, but images have at"):
            read(make(60000, 50000))
    if make is huge_jpeg:
        with pytest.raises(ValueError, match="announces 60000 x 50000 pixels"):
            decode_compressed_image(huge_jpeg(60000, 50000, FILES["jpeg cmyk"]))


@pytest.mark.parametrize("kind", ["jpeg", "jpeg cmyk", "png", "webp"])
def test_the_limit_is_what_it_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_pixels = PHOTOGRAPH.shape[0] * PHOTOGRAPH.shape[1]
    monkeypatch.setattr(image_limits, "MAX_PIXELS", num_pixels)
    decode_compressed_image(FILES[kind])
    monkeypatch.setattr(image_limits, "MAX_PIXELS", num_pixels - 1)
    with pytest.raises(ValueError, match=f"at most {num_pixels - 1}"):
        decode_compressed_image(FILES[kind])


SMALL = photograph().resize((24, 17))
DAMAGED = {
    "jpeg": (encoded(SMALL, "JPEG"), decode_compressed_image, image_shape_of_compressed),
    "jpeg cmyk": (encoded(SMALL.convert("CMYK"), "JPEG"), decode_compressed_image),
    "png palette": (encoded(SMALL.convert("P"), "PNG"), decode_compressed_image),
    "png": (encoded(SMALL, "PNG"), decode_compressed_image, image_shape_of_compressed),
    "webp": (encoded(SMALL, "WEBP"), decode_compressed_image, image_shape_of_compressed),
    "array": (npy(np.asarray(SMALL)), decode_npy_image, image_shape_of_npy),
}


@pytest.mark.filterwarnings("ignore")  # of Pillow and Python about what they are given
@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_a_value_error_or_an_image_and_nothing_else(kind: str) -> None:
    payload, *readers = DAMAGED[kind]
    rng = np.random.default_rng(0)
    num_refused = 0
    for _ in range(250):
        damaged = bytearray(payload)
        for _ in range(rng.integers(1, 5)):
            damaged[rng.integers(len(payload))] = rng.integers(256)
        for read in readers:
            try:
                found = read(bytes(damaged[: rng.integers(1, 2 * len(payload))]))
            except ValueError:
                num_refused += 1
                continue
            shape = found if isinstance(found, tuple) else found.shape
            assert len(shape) == 3
    assert num_refused > 0


def with_header(text: str) -> bytes:
    header = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(12)


def test_headers_that_are_no_headers() -> None:
    for header in (
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
    ):
        for decode in (decode_npy_image, image_shape_of_npy, decode_tokens, shape_of_tokens):
            with pytest.raises(ValueError, match=r"."):
                decode(with_header(header))


@pytest.mark.parametrize("order", ["C", "F"])
def test_array_images_are_views_of_the_payload(order: str) -> None:
    stored = np.asarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3), order=order)
    payloads = {"npy": npy(stored), "cls": b" 12\n"}
    sample = SampleDecoder.for_columns(["cls", "npy"]).decode(payloads)
    assert isinstance(sample, Sample)
    assert np.array_equal(sample.image, stored)
    assert not sample.image.flags.owndata
    assert not sample.image.flags.writeable
    assert sample.label == 12
    assert probe(payloads) == ((2, 4, 3), 12)


def test_tokens_are_read_by_the_name_of_their_column() -> None:
    tokens = np.arange(10, dtype=np.int32).reshape(2, 5) * 1000
    decoder = SampleDecoder.for_columns(["cls", "tokens.npy"])
    assert decoder.holds_text
    payloads = {"tokens.npy": npy(tokens), "cls": b"1"}
    sample = decoder.decode(payloads)
    assert isinstance(sample, TextSample)
    assert np.array_equal(sample.tokens, tokens)
    assert sample.tokens.dtype == np.int32
    assert sample.label == 1
    assert decoder.probe(payloads) == ((2, 5), 1)
    assert not SampleDecoder.for_columns(["cls", "npy"]).holds_text


@pytest.mark.parametrize(
    ("column", "array", "message"),
    [
        ("npy", np.zeros((2, 2, 3), np.uint16), "an image is uint8 of shape .* this is uint16"),
        ("npy", np.zeros((2, 2), np.uint8), r"this is uint8 of shape \(2, 2\)"),
        ("npy", np.zeros((0, 2, 3), np.uint8), r"this is uint8 of shape \(0, 2, 3\)"),
        ("tokens.npy", np.zeros((1, 4), np.int64), "tokens are int32 .* this is int64"),
        ("tokens.npy", np.zeros(4, np.int32), r"this is int32 of shape \(4,\)"),
        ("tokens.npy", np.zeros((1, 4), ">i4"), "this is >i4"),
    ],
)
def test_arrays_of_other_kinds_are_refused(
    column: str, array: NDArray[np.generic], message: str
) -> None:
    payloads = {column: npy(array), "cls": b"0"}
    decoder = SampleDecoder.for_columns(["cls", column])
    for read in (decoder.decode, decoder.probe):
        with pytest.raises(ValueError, match=rf"column \.{column}: .*{message}"):
            read(payloads)


def test_pickles_and_array_files_of_the_wrong_length_are_refused() -> None:
    decoder = SampleDecoder.for_columns(["cls", "npy"])
    whole = npy(np.zeros((2, 2, 3), np.uint8))
    objects = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for payload in (objects, pickle.dumps([1]), whole[:-1], whole + b"\0", whole[:64]):
        with pytest.raises(ValueError, match=r"column \.npy"):
            decoder.decode({"npy": payload, "cls": b"0"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["cls", "jpg", "json"], r"columns \.json cannot be decoded: images are \.jpg, .*\.npy"),
        (["cls", "jpg", "png"], r"one image or text and one class number, .*\.cls, \.jpg, \.png"),
        (["jpg"], r"the columns are \.jpg: .* class numbers are \.cls"),
        (["npy", "tokens.npy", "cls"], r"texts are \.tokens\.npy"),
    ],
)
def test_columns_that_are_no_sample_are_refused(columns: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SampleDecoder.for_columns(columns)
