"""IDX files, the format of MNIST: http://yann.lecun.com/exdb/mnist/ ("THE IDX FILE FORMAT").

A file begins with two zero bytes, the type (8: unsigned bytes) and the number of dimensions; then
comes the size of each dimension, big-endian in four bytes, and then the content.
"""

import contextlib
import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError

_UNSIGNED_BYTES = 8
_BLOCK_ROWS = 4096
# No file is compressed to less than one byte of so many: https://zlib.net/zlib_tech.html.
_MOST_COMPRESSED = 1032
# The largest published set of this kind has 8 million samples, 7 GB.
_MOST_SAMPLES, _MOST_VALUES = 1 << 26, 1 << 35


def find_idx_file(folder: Path, stem: str, *, num_dimensions: int) -> Path:
    """Finds a file under any of the names it is published with, compressed or not.

    Raises:
        UserError: There is none.
    """
    names = [
        f"{stem}{separator}idx{num_dimensions}-ubyte{suffix}"
        for separator in ("-", ".")
        for suffix in ("", ".gz")
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: holds none of {', '.join(names)}")


def read_idx_labels(path: Path, *, num_classes: int) -> NDArray[np.int64]:
    """Reads class numbers, (samples,).

    Raises:
        UserError: It is no such file, is cut short, or a label is too large.
    """
    with _opened(path) as file:
        (num_samples,) = _read_sizes(path, file, num_dimensions=1)
        labels = np.frombuffer(_read_exactly(path, file, num_samples), np.uint8)
        _check_end(path, file)
    if labels.max() >= num_classes:
        raise UserError(f"{path}: label {labels.max()}, but the classes are 0 … {num_classes - 1}")
    return labels.astype(np.int64)


def convert_idx_images(path: Path, *, out: Path) -> None:
    """Writes the grey images of an IDX file to a `.npy` file, (samples, height, width, 1).

    Raises:
        UserError: It is no such file or is cut short.
    """
    with _opened(path) as file:
        num_samples, height, width = _read_sizes(path, file, num_dimensions=3)
        images = np.lib.format.open_memmap(
            out, mode="w+", dtype=np.uint8, shape=(num_samples, height, width, 1), version=(1, 0)
        )
        for start in range(0, num_samples, _BLOCK_ROWS):
            block = images[start : start + _BLOCK_ROWS]
            block[:] = np.frombuffer(_read_exactly(path, file, block.size), np.uint8).reshape(
                block.shape
            )
        _check_end(path, file)
        images.flush()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    file = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115
    try:
        with file:
            yield cast(BinaryIO, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or cut short: {error}") from error


def _read_sizes(path: Path, file: BinaryIO, *, num_dimensions: int) -> tuple[int, ...]:
    magic = bytes([0, 0, _UNSIGNED_BYTES, num_dimensions])
    found = file.read(4)
    if found != magic:
        raise UserError(
            f"{path}: begins with {found.hex(' ')}, not {magic.hex(' ')}: no IDX file of unsigned "
            f"bytes in {num_dimensions} dimensions"
        )
    header = _read_exactly(path, file, 4 * num_dimensions)
    sizes = tuple(np.frombuffer(header, ">u4").tolist())
    values = " x ".join(map(str, sizes))
    if 0 in sizes:
        raise UserError(f"{path}: says that it holds {values} values: none")
    # Before room is made for them.
    most_bytes = path.stat().st_size * (_MOST_COMPRESSED if path.suffix == ".gz" else 1)
    if math.prod(sizes) > most_bytes:
        raise UserError(f"{path}: cut short or damaged: says that it holds {values} values")
    if sizes[0] > _MOST_SAMPLES or math.prod(sizes) > _MOST_VALUES:
        raise UserError(f"{path}: says that it holds {values} values: more than any such set")
    return sizes


def _read_exactly(path: Path, file: BinaryIO, num_bytes: int) -> bytes:
    content = file.read(num_bytes)
    if len(content) < num_bytes:
        raise UserError(f"{path}: cut short: {num_bytes - len(content)} bytes or more are missing")
    return content


def _check_end(path: Path, file: BinaryIO) -> None:
    if file.read(1):
        raise UserError(f"{path}: more follows than its header says")
