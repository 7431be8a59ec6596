"""Evaluation data: every sample exactly once over all ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading.batchers import Batch
from data_pipelines.loading.items import Item
from data_pipelines.loading.source import SplitSource
from data_pipelines.loading.worker_pool import DEFAULT_HOST_BYTES, WorkerPool
from data_pipelines.sources import ShardSource
from data_pipelines.transforms import TransformPreset


class EvaluationLoader:
    """Yields one rank's blocks of the samples 0 … num_samples - 1, in order, or of those given.

    Block j is for rank j mod num_ranks; the last block is as short as it comes. Nothing is padded,
    repeated or left out, so ranks may yield different numbers of blocks, and none.
    """

    def __init__(
        self,
        index: SampleIndex,
        *,
        batch_size: int,
        rank: int,
        num_ranks: int,
        transform: TransformPreset | None,
        num_workers: int,
        max_host_bytes: int = DEFAULT_HOST_BYTES,
        resident: bool = False,
        source: ShardSource | None = None,
        sample_ids: NDArray[np.int64] | None = None,
    ) -> None:
        """Checks the settings; workers start with the first iteration.

        Args:
            index: The split to evaluate on.
            batch_size: Samples of a block.
            rank: This rank, in 0 … num_ranks - 1.
            num_ranks: How many ranks share the samples.
            transform: What is done to the images; None for text.
            num_workers: Processes that load; 0 loads in this one.
            max_host_bytes: Bounds the memory of the batches that are loaded ahead and in use.
            resident: Reads all samples once and keeps them in memory; for small images.
            source: Reads the bytes of the shards; by default from the folder of the index.
            sample_ids: Which samples, in their order; by default all of them.

        Raises:
            UserError: A setting is out of range.
        """
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} is not positive")
        if not 0 <= rank < num_ranks:
            raise UserError(f"rank: {rank} is not in 0 … {num_ranks - 1} (num_ranks {num_ranks})")
        self._num_ranks, self._batch_size = num_ranks, batch_size
        ids = np.arange(index.num_samples) if sample_ids is None else sample_ids
        self._num_samples = len(ids)
        lengths = index.lengths
        self._blocks = _Blocks(
            starts=self._starts(rank), batch_size=batch_size, sample_ids=ids, lengths=lengths
        )
        self._pool = WorkerPool(
            SplitSource(
                index,
                transform=transform,
                augmentation_seed=None,
                source=source,
                on_error=None,  # another sample in its place would be counted twice
            ),
            items=self._blocks,
            num_rows=min(batch_size, len(ids)),
            max_length=0 if lengths is None else int(lengths.max()),
            num_workers=num_workers,
            max_host_bytes=max_host_bytes,
            resident=resident,
        )

    def __len__(self) -> int:
        """How many blocks this rank yields."""
        return len(self._blocks)

    def num_blocks_of(self, rank: int) -> int:
        """How many blocks another rank yields; none yields more than rank 0."""
        return len(self._starts(rank))

    def _starts(self, rank: int) -> range:
        return range(rank * self._batch_size, self._num_samples, self._num_ranks * self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches as `MicroBatchLoader` does; text is filled up to the longest of a block.

        Raises:
            UserError: A shard is missing or damaged; the message names shard and sample.
        """
        return iter(self._pool)


@dataclass(frozen=True)
class _Blocks:
    starts: range
    batch_size: int
    sample_ids: NDArray[np.int64]
    lengths: NDArray[np.uint32] | None

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Item]:
        for start in self.starts:
            ids = self.sample_ids[start : start + self.batch_size]
            length = 0 if self.lengths is None else int(self.lengths[ids].max())
            # There is no epoch in evaluation; nothing is drawn from it.
            yield Item(epoch=0, sample_ids=ids, length=length)
