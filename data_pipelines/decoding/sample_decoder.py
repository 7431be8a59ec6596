"""Which column is the content, which the label, and how both are decoded."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from data_pipelines.decoding.columns import (
    IMAGE_DECODERS,
    LABEL_DECODERS,
    TOKENS_COLUMN,
    TOKENS_DECODER,
    ContentDecoder,
)
from data_pipelines.decoding.samples import Sample, SampleHeader, TextSample
from data_pipelines.errors import UserError, a_few


@dataclass(frozen=True)
class SampleDecoder:
    """Decodes samples that have one column of content, an image or tokens, and one label column."""

    content_column: str
    label_column: str

    @classmethod
    def for_columns(cls, columns: Sequence[str]) -> "SampleDecoder":
        """Finds the content and the label among `columns`, the extensions of a sample's files.

        Raises:
            UserError: A column's extension has no decoder, or there is not one content and one
                label.
        """
        contents = [column for column in columns if _content_decoder(column) is not None]
        labels = [column for column in columns if _extension(column) in LABEL_DECODERS]
        unknown = sorted(set(columns) - set(contents) - set(labels))
        known = (
            f"images are {_listing(IMAGE_DECODERS)}, texts are .{TOKENS_COLUMN}, "
            f"class numbers are {_listing(LABEL_DECODERS)}"
        )
        if unknown:
            raise UserError(f"columns {_listing(unknown)} cannot be decoded: {known}")
        if len(contents) != 1 or len(labels) != 1:
            raise UserError(
                f"a sample has one image or text and one class number, but the columns are "
                f"{_listing(columns)}: {known}"
            )
        return cls(content_column=contents[0], label_column=labels[0])

    @property
    def holds_text(self) -> bool:
        """Whether samples are `TextSample`s."""
        return self._content.kind == "tokens"

    def decode(self, payloads: Mapping[str, bytes]) -> Sample | TextSample:
        """Decodes a sample from the bytes of its columns.

        Raises:
            ValueError: A payload is not what its extension says; the message names the column.
        """
        column = self.content_column
        try:
            array = self._content.decode(payloads[column])
            column = self.label_column
            label = LABEL_DECODERS[_extension(column)](payloads[column])
        except ValueError as error:
            raise ValueError(f"column .{column}: {error}") from error
        return TextSample(array, label) if self.holds_text else Sample(array, label)

    def probe(self, payloads: Mapping[str, bytes]) -> SampleHeader:
        """Returns the shape and label of a sample without decoding its content.

        Raises:
            ValueError: As `decode`; damage behind the header of the content is not found.
        """
        column = self.content_column
        try:
            shape = self._content.shape(payloads[column])
            column = self.label_column
            label = LABEL_DECODERS[_extension(column)](payloads[column])
        except ValueError as error:
            raise ValueError(f"column .{column}: {error}") from error
        return SampleHeader(shape, label)

    @property
    def _content(self) -> ContentDecoder:
        decoder = _content_decoder(self.content_column)
        assert decoder is not None, self.content_column
        return decoder


def probe(payloads: Mapping[str, bytes]) -> SampleHeader:
    """Returns the shape and label of a sample without decoding its content.

    Args:
        payloads: The bytes of all its files by their extensions.

    Raises:
        UserError: The extensions are not those of a sample, see `SampleDecoder.for_columns`.
        ValueError: See `SampleDecoder.probe`.
    """
    return decoder_for(tuple(payloads)).probe(payloads)


# The samples of a shard have the same columns.
@functools.lru_cache(maxsize=16)
def decoder_for(columns: tuple[str, ...]) -> SampleDecoder:
    """Returns `SampleDecoder.for_columns`, found once."""
    return SampleDecoder.for_columns(columns)


def _content_decoder(column: str) -> ContentDecoder | None:
    return TOKENS_DECODER if column == TOKENS_COLUMN else IMAGE_DECODERS.get(_extension(column))


def _extension(column: str) -> str:
    return column.rpartition(".")[-1]


def _listing(columns: Iterable[str]) -> str:
    return a_few(f".{column}" for column in columns) or "none"
