"""Which column is the image, which the label, and how both are decoded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.decoding.columns import IMAGE_DECODERS, LABEL_DECODERS
from data_pipelines.errors import UserError


class Sample(NamedTuple):
    """One decoded sample: the image, uint8 (height, width, channels), and its class number."""

    image: NDArray[np.uint8]
    label: int


@dataclass(frozen=True)
class SampleDecoder:
    """Decodes samples that have one image column and one label column."""

    image_column: str
    label_column: str

    @classmethod
    def for_columns(cls, columns: Sequence[str]) -> "SampleDecoder":
        """Finds the image and the label among `columns`, the extensions of a sample's files.

        Raises:
            UserError: A column's extension has no decoder, or there is not one image and one label.
        """
        images = [column for column in columns if _extension(column) in IMAGE_DECODERS]
        labels = [column for column in columns if _extension(column) in LABEL_DECODERS]
        unknown = sorted(set(columns) - set(images) - set(labels))
        known = (
            f"images are {_listing(IMAGE_DECODERS)}, class numbers are {_listing(LABEL_DECODERS)}"
        )
        if unknown:
            raise UserError(f"columns {_listing(unknown)} cannot be decoded: {known}")
        if len(images) != 1 or len(labels) != 1:
            raise UserError(
                f"a sample has one image and one class number, but the columns are "
                f"{_listing(columns)}: {known}"
            )
        return cls(image_column=images[0], label_column=labels[0])

    def decode(self, payloads: Mapping[str, bytes]) -> Sample:
        """Decodes a sample from the bytes of its columns.

        Raises:
            ValueError: A payload is not what its extension says; the message names the column.
        """
        column = self.image_column
        try:
            image = IMAGE_DECODERS[_extension(column)](payloads[column])
            column = self.label_column
            label = LABEL_DECODERS[_extension(column)](payloads[column])
        except ValueError as error:
            raise ValueError(f"column .{column}: {error}") from error
        return Sample(image, label)


def _extension(column: str) -> str:
    return column.rpartition(".")[-1]


def _listing(columns: Iterable[str]) -> str:
    return ", ".join(f".{column}" for column in columns) or "none"
