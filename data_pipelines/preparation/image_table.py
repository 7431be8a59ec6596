"""A list of image files that may be longer than fits into memory as Python objects."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.preparation.array_images import mapped_array

_RECORD = np.dtype(
    [
        ("name_start", "<u8"),
        ("name_bytes", "<u4"),
        ("label", "<i4"),
        ("offset", "<u8"),
        ("bytes", "<u8"),
    ]
)
_NAMES_FILE, _RECORDS_FILE = "names.npy", "records.npy"


class ImageEntry(NamedTuple):
    """An image: its name, its class, and which bytes of its file it is."""

    name: str
    label: int
    offset: int
    num_bytes: int


class ImageTable:
    """Entries by number, mapped from files; sending it to another process sends only their path."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder that `write_image_table` has filled."""
        self._folder = folder

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> ImageEntry:
        """Returns one entry."""
        record = self._records[number]
        start, length = int(record["name_start"]), int(record["name_bytes"])
        name = self._names[start : start + length].tobytes()
        return ImageEntry(
            name=name.decode("utf-8", "surrogateescape"),
            label=int(record["label"]),
            offset=int(record["offset"]),
            num_bytes=int(record["bytes"]),
        )

    @property
    def num_bytes(self) -> int:
        """How many bytes all images have together."""
        return int(self._records["bytes"].sum())

    @property
    def sha256(self) -> str:
        """Checksum over names, classes, places and sizes."""
        digest = hashlib.sha256(self._names.data)
        digest.update(self._records.view(np.uint8).data)
        return digest.hexdigest()

    @property
    def _names(self) -> NDArray[np.uint8]:
        return mapped_array(self._folder / _NAMES_FILE)

    @property
    def _records(self) -> NDArray[np.void]:
        return mapped_array(self._folder / _RECORDS_FILE)


def write_image_table(folder: Path, entries: Iterable[ImageEntry]) -> None:
    """Writes a table into `folder`, holding one entry at a time."""
    names, records = folder / "names.bin", folder / "records.bin"
    name_start = 0
    with names.open("xb") as names_file, records.open("xb") as records_file:
        for entry in entries:
            name = entry.name.encode("utf-8", "surrogateescape")
            names_file.write(name)
            row = (name_start, len(name), entry.label, entry.offset, entry.num_bytes)
            records_file.write(np.array(row, _RECORD).tobytes())
            name_start += len(name)
    np.save(folder / _NAMES_FILE, np.fromfile(names, np.uint8), allow_pickle=False)
    np.save(folder / _RECORDS_FILE, np.fromfile(records, _RECORD), allow_pickle=False)
    names.unlink()
    records.unlink()
