"""How samples become a batch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading.items import Item, Part
from data_pipelines.loading.layout import BatchLayout
from data_pipelines.transforms import TransformPreset

# What a loader yields: a tuple of tensors for images, a dict of them for text.
Batch = Any


class SampleReader(Protocol):
    """Reads samples by id, in any order."""

    def read(
        self, sample_ids: Sequence[int], *, epoch: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yields samples, each with its place in `sample_ids`; damaged ones may be replaced.

        Args:
            sample_ids: Which samples.
            epoch: On which the replacements depend.
        """
        ...


class Batcher(Protocol):
    """Loads samples into the arrays of a batch; sent to the workers."""

    def layout(self, num_rows: int, *, length: int) -> BatchLayout:
        """Returns how a batch lies in memory.

        Args:
            num_rows: How many samples it has.
            length: For text, how many tokens each sample is filled up to.
        """
        ...

    def load(self, part: Part, *, arrays: Mapping[str, NDArray[Any]], reader: SampleReader) -> None:
        """Loads the samples of a part into their rows; `copies` are left to the caller.

        Raises:
            UserError: A sample cannot be read, or does not fit the others.
        """
        ...

    def batch(self, tensors: Mapping[str, torch.Tensor], item: Item) -> Batch:
        """Returns what users get of the arrays of a batch."""
        ...


def check_kind(index: SampleIndex, transform: TransformPreset | None) -> None:
    """Checks that a transform is given for images, and none for text.

    Raises:
        UserError: It is not so.
    """
    if index.meta.tokens is None and transform is None:
        raise UserError(
            f"transform: {index.directory} holds images, which need one; `none` leaves them as "
            "they are"
        )
    if index.meta.tokens is not None and transform is not None and transform.name != "none":
        raise UserError(
            f"transform: {transform.name} is for images, but {index.directory} holds text; "
            "leave it out"
        )
