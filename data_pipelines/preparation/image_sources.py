"""Images in files of their own or inside a tar, stored as the bytes they are."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.preparation.image_table import ImageEntry, ImageTable
from data_pipelines.preparation.recipe import EncodedSample

# File name endings that are stored, and the column each is stored as.
IMAGE_COLUMNS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}

_MAX_STEM = 60
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class FolderImages:
    """Image files below a folder.

    Attributes:
        root: The folder; the names in the table are relative to it.
        table: The files.
        column: The column all of them are stored as.
    """

    root: Path
    table: ImageTable
    column: str

    def read(self, places: NDArray[np.int64]) -> Iterator[EncodedSample]:
        """Yields the samples at `places`.

        Raises:
            UserError: A file is gone, cannot be read, or has another size than before.
        """
        for number in places.tolist():
            entry = self.table[number]
            path = self.root / entry.name
            try:
                content = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error}") from error
            if len(content) != entry.num_bytes:
                raise UserError(
                    f"{path}: {len(content)} bytes, but {entry.num_bytes} at the start: it changed "
                    "meanwhile; start again when nothing writes there any more"
                )
            yield _encoded(number, entry, content, column=self.column, origin=str(path))


@dataclass(frozen=True)
class TarImages:
    """Images inside an uncompressed tar, or inside tars in it, read where they lie.

    Attributes:
        path: The outer tar.
        table: The images, each with its offset in it.
        column: The column all of them are stored as.
    """

    path: Path
    table: ImageTable
    column: str

    def read(self, places: NDArray[np.int64]) -> Iterator[EncodedSample]:
        """Yields the samples at `places`.

        Raises:
            UserError: The tar cannot be read or is shorter than before.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                for number in places.tolist():
                    entry = self.table[number]
                    content = os.pread(file.fileno(), entry.num_bytes, entry.offset)
                    origin = f"{self.path}: {entry.name}"
                    if len(content) != entry.num_bytes:
                        raise UserError(f"{origin}: cut short")
                    yield _encoded(number, entry, content, column=self.column, origin=origin)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error}") from error


def _encoded(
    number: int, entry: ImageEntry, content: bytes, *, column: str, origin: str
) -> EncodedSample:
    # The number makes the key unique; the rest of the name helps people to find the image again.
    stem = _NOT_IN_KEYS.sub("_", PurePosixPath(entry.name).stem)[:_MAX_STEM]
    return EncodedSample(
        key=f"{number:08d}-{stem}",
        columns={column: content, "cls": str(entry.label).encode("ascii")},
        origin=origin,
    )
