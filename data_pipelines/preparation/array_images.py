"""Images of one size in an array file that all processes map into memory."""

import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.preparation.recipe import EncodedSample


class ArrayImages:
    """Small images, stored as they are."""

    def __init__(self, images: Path | NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Takes the samples in the order of their numbers, which are their keys.

        Args:
            images: uint8, (samples, height, width, channels), or a `.npy` file of them.
            labels: Class numbers, (samples,).
        """
        self._images = images
        self._labels = labels

    def read(self, places: NDArray[np.int64]) -> Iterator[EncodedSample]:
        """Yields the samples at `places`."""
        images = (
            self._images if isinstance(self._images, np.ndarray) else mapped_array(self._images)
        )
        for number in places.tolist():
            yield EncodedSample(
                key=f"{number:06d}",
                columns={
                    "npy": encode_npy(images[number]),
                    "cls": str(int(self._labels[number])).encode("ascii"),
                },
                origin=f"image {number}",
            )


def encode_npy(array: NDArray[Any]) -> bytes:
    """Returns the `.npy` file of an array."""
    stream = io.BytesIO()
    # The oldest version of the format, which no later NumPy writes differently.
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def mapped_array(path: Path) -> NDArray[Any]:
    """Maps a `.npy` file that does not change any more; once a process."""
    status = path.stat()
    # The path alone is not enough: a later preparation may put another file there.
    return _mapped_array(path, status.st_ino, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _mapped_array(path: Path, file_number: int, modified: int) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
