"""Reading the data sets whose image number i holds the number i."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipelines import ShardReader
from data_pipelines.reading import Split


def read_numbers(
    reader: ShardReader, sample_ids: Sequence[int], *, epoch: int | None = None
) -> list[int]:
    """Returns the number in each sample, in the order of `sample_ids`."""
    numbers = [-1] * len(sample_ids)
    for place, sample in reader.read(sample_ids, epoch=epoch):
        numbers[place] = int(sample.image.tobytes()[0]) + 256 * int(sample.image.tobytes()[1])
        assert sample.label == numbers[place] % 7
    return numbers


def read_all(split: Split) -> list[int]:
    reader = ShardReader(split.index, source=split.source)
    try:
        return read_numbers(reader, range(split.index.num_samples))
    finally:
        reader.close()
