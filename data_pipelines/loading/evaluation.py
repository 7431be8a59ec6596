"""Evaluation data: every sample exactly once over all ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading.dataset import Batch, BatchDataset, SampleRequest
from data_pipelines.loading.worker_pool import WorkerPool
from data_pipelines.transforms import TransformPreset


class EvaluationLoader:
    """Yields one rank's blocks of the samples 0 … num_samples - 1, in order.

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
        transform: TransformPreset,
        num_workers: int,
    ) -> None:
        """Checks the settings; workers start with the first iteration.

        Args:
            index: The split to evaluate on.
            batch_size: Samples of a block.
            rank: This rank, in 0 … num_ranks - 1.
            num_ranks: How many ranks share the samples.
            transform: What is done to the images.
            num_workers: Processes that load; 0 loads in this one.

        Raises:
            UserError: A setting is out of range.
        """
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} is not positive")
        if not 0 <= rank < num_ranks:
            raise UserError(f"rank: {rank} is not in 0 … {num_ranks - 1} (num_ranks {num_ranks})")
        self._num_ranks, self._batch_size = num_ranks, batch_size
        self._num_samples = index.num_samples
        self._blocks = _Blocks(
            starts=self._starts(rank), batch_size=batch_size, num_samples=index.num_samples
        )
        self._pool = WorkerPool(
            BatchDataset(index, transform=transform, augmentation_seed=None),
            batches=self._blocks,
            num_workers=num_workers,
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
        """Yields images, uint8 (samples, height, width, channels), and labels, int64 (samples,).

        Raises:
            UserError: A shard is missing or damaged; the message names shard and sample.
        """
        return iter(self._pool)


@dataclass(frozen=True)
class _Blocks:
    starts: range
    batch_size: int
    num_samples: int

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        for start in self.starts:
            stop = min(start + self.batch_size, self.num_samples)
            # There is no epoch in evaluation; nothing is drawn from it.
            yield [(0, sample_id) for sample_id in range(start, stop)]
