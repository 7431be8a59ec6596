"""Tars and samples that were made to write elsewhere, to take the memory, or to run code."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_bound import bounded

from data_pipelines import build_index
from data_pipelines.decoding import SampleDecoder
from data_pipelines.errors import UserError
from data_pipelines.preparation.tar_members import walk_tar


def _npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


_IMAGE = _npy(np.zeros((2, 2, 3), np.uint8))
_END = bytes(2 * tarfile.BLOCKSIZE)


def _member(name: str, content: bytes = b"", *, size: int | None = None, **fields: Any) -> bytes:
    """A header, which may say another size, and the content."""
    info = tarfile.TarInfo(name)
    info.size = len(content) if size is None else size
    for field, value in fields.items():
        setattr(info, field, value)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return info.tobuf(tarfile.GNU_FORMAT) + content + padding


def _sample(key: str, image: bytes = _IMAGE, column: str = "npy") -> bytes:
    return _member(f"{key}.{column}", image) + _member(f"{key}.cls", b"1")


def _pax(text: bytes) -> bytes:
    return _member("pax", text, type=tarfile.XHDTYPE)


def _pax_record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    size = len(rest) + 2
    while len(str(size)) + len(rest) != size:
        size = len(str(size)) + len(rest)
    return str(size).encode() + rest


_TARS: dict[str, tuple[bytes, str]] = {
    "climbing inside": (_sample("a/../../x"), "leads out of the folder"),
    "absolute": (_sample("/etc/x"), "leads out of the folder"),
    "climbing in an extended header": (
        _pax(_pax_record("path", "../x.npy")) + _member("x.npy", _IMAGE),
        "leads out of the folder",
    ),
    "a symbolic link": (_member("a.npy", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
    "a hard link": (_member("a.npy", type=tarfile.LNKTYPE, linkname="../x"), "a link"),
    "a device": (_member("a.npy", type=tarfile.CHRTYPE), "a device or a pipe"),
    "a pipe": (_member("a.npy", type=tarfile.FIFOTYPE), "a device or a pipe"),
    "a size behind the end": (_member("a.npy", _IMAGE, size=1 << 40), "not a whole"),
    "a size of 8 EiB": (_member("a.npy", _IMAGE, size=(1 << 63) - 1), "not a whole|damaged"),
    "a negative size": (_member("a.npy", _IMAGE, size=-1024), "has -1024 bytes"),
    "a negative size in an extended header": (
        _pax(_pax_record("size", "-1024")) + _member("a.npy", _IMAGE),
        "has -1024 bytes",
    ),
    "a huge extended header": (
        _member("pax", size=8 << 30, type=tarfile.XHDTYPE),
        "extended header of 8589934592 bytes",
    ),
    "a negative extended header": (
        _member("pax", size=-512, type=tarfile.XHDTYPE),
        "extended header of -512 bytes",
    ),
    "a huge long name": (
        _member("long", size=8 << 30, type=tarfile.GNUTYPE_LONGNAME),
        "extended header of 8589934592 bytes",
    ),
    "headers of headers": (_pax(_pax_record("a", "b")) * 2000, "hundreds of extended headers"),
    "names of names": (
        _member("l", b"x\0", type=tarfile.GNUTYPE_LONGNAME) * 2000,
        "hundreds of extended headers",
    ),
    "many settings": (
        _member(
            "pax",
            b"".join(_pax_record(f"k{number}", "v") for number in range(2000)),
            type=tarfile.XGLTYPE,
        )
        + _sample("a"),
        "settings for all its members",
    ),
    "a sparse file": (
        _pax(_pax_record("GNU.sparse.size", str(1 << 50)) + _pax_record("GNU.sparse.map", "0,1"))
        + _member("a.npy", _IMAGE),
        "sparse",
    ),
    "a sparse map that is none": (
        _pax(_pax_record("GNU.sparse.size", "1") + _pax_record("GNU.sparse.map", "x,y"))
        + _member("a.npy", _IMAGE),
        "no valid tar header",
    ),
    "code": (_sample("a", pickle.dumps(print), column="pyd"), "pyd"),
    "gzip in the name": (_sample("a", _IMAGE, column="npy.gz"), "npy.gz"),
}


@pytest.mark.parametrize("kind", _TARS)
def test_hostile_shards_are_refused(kind: str, tmp_path: Path) -> None:
    content, words = _TARS[kind]
    folder = tmp_path / "in" / "in"
    folder.mkdir(parents=True)
    shard = folder / "part-000000.tar"
    shard.write_bytes(_sample("0") + content + _END)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)}
    with bounded(), pytest.raises(UserError, match=words) as caught:
        build_index([shard])
    assert str(shard) in str(caught.value)
    assert before == {path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)}
    assert not (folder / "index").exists()


def test_samples_of_gigabytes_are_refused(tmp_path: Path) -> None:
    shard = tmp_path / "part-000000.tar"
    with shard.open("wb") as file:
        file.write(_member("a.npy", size=3 << 30))
        file.seek(3 << 30, io.SEEK_CUR)  # takes no room
        file.write(_member("a.cls", b"1") + _END)
    with bounded(), pytest.raises(UserError, match=r"sample 'a': \d+ bytes are more than a sample"):
        build_index([shard])


def test_hostile_tars_of_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    for kind in ("a negative size", "a huge extended header", "headers of headers"):
        path.write_bytes(_sample("0") + _TARS[kind][0] + _END)
        with bounded(), pytest.raises(UserError, match=r"images.tar: "):
            list(walk_tar(path))


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def _png_text(num_bytes: int) -> bytes:
    """A compressed comment that is far larger than the image."""
    content = b"Comment\0\0" + zlib.compress(bytes(num_bytes))
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + content))
    whole = _png(2, 2)
    return whole[:33] + chunk + whole[33:]


def _jpeg(width: int, height: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def _webp(width: int, height: int) -> bytes:
    size = (width - 1) | (height - 1) << 14
    content = b"\x2f" + struct.pack("<I", size) + bytes(64)
    chunk = b"VP8L" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _npy_of_shape(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(64)


_IMAGES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "PNG": ("png", lambda: _png(1 << 20, 1 << 20), "pixels, but images have at most"),
    "JPEG": ("jpg", lambda: _jpeg(65500, 65500), "pixels, but images have at most"),
    "WebP": ("webp", lambda: _webp(16000, 16000), "pixels, but images have at most"),
    "PNG comment": ("png", lambda: _png_text(64 << 20), "column .png: damaged"),
    "array": ("npy", lambda: _npy_of_shape(f"({1 << 30}, {1 << 30}, 3)"), "takes .* bytes, but 64"),
    "negative array": ("npy", lambda: _npy_of_shape("(-2, -2, 3)"), "column .npy: "),
    "objects": (
        "npy",
        lambda: _npy(np.array([print], dtype=object), allow_pickle=True),
        "column .npy: an image is uint8",
    ),
    "another format": ("png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "neither JPEG, PNG nor WebP"),
}


@pytest.mark.parametrize("kind", _IMAGES)
def test_hostile_images_are_refused(kind: str) -> None:
    column, make, words = _IMAGES[kind]
    payloads = {column: make(), "cls": b"1"}
    decoder = SampleDecoder.for_columns(list(payloads))
    with bounded(), pytest.raises(ValueError, match=words):
        decoder.decode(payloads)


def test_hostile_labels_are_refused() -> None:
    decoder = SampleDecoder.for_columns(["npy", "cls"])
    for label in (b"9" * 10_000, b"-1", b"1e9", b"\xd9\xa1", b"", b"1.5", b"cat"):
        with pytest.raises(ValueError, match=r"column .cls: ") as caught:
            decoder.decode({"npy": _IMAGE, "cls": label})
        assert len(str(caught.value)) < 300
