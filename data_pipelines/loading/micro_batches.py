"""Training data: the same mini-batches on any number of ranks and workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading.dataset import Batch, BatchDataset, SampleRequest
from data_pipelines.loading.worker_pool import WorkerPool
from data_pipelines.order import SampleOrder, sample_order
from data_pipelines.transforms import TransformPreset


class MicroBatchLoader:
    """Yields one rank's part of the mini-batches of consecutive steps.

    Which samples form the mini-batch of a step, in which order, and how each is augmented follows
    from (order, seed, step, batch_size) and the data alone. `positions` says which of them this
    rank loads; it picks, and changes nothing. Iterating again starts again at `first_step`.

    Attributes:
        steps_per_epoch: Full mini-batches in an epoch. The samples left over are others each epoch.
    """

    def __init__(
        self,
        index: SampleIndex,
        *,
        order: str,
        seed: int,
        batch_size: int,
        positions: Sequence[Sequence[int]],
        transform: TransformPreset,
        num_workers: int,
        first_step: int,
        num_steps: int,
    ) -> None:
        """Checks the settings; workers start with the first iteration.

        Args:
            index: The split to train on.
            order: Name of the sample order, see `ORDERS`.
            seed: Of the order and the augmentation; in [0, 2**63).
            batch_size: Samples of a mini-batch over all ranks.
            positions: For each item to yield within a step, the positions in the mini-batch it
                consists of, each in 0 … batch_size - 1.
            transform: What is done to the images.
            num_workers: Processes that load; 0 loads in this one.
            first_step: Steps done before, over all epochs; where a resumed run goes on.
            num_steps: Steps to yield.

        Raises:
            UserError: A setting is out of range; the message names it and the bounds.
        """
        _check_batch_size(batch_size, index)
        for item in positions:
            _check_positions(item, batch_size)
        if first_step < 0 or num_steps < 0:
            raise UserError(f"first_step {first_step} and num_steps {num_steps} cannot be negative")
        self.steps_per_epoch = index.num_samples // batch_size
        self._schedule = _Schedule(
            order=sample_order(order, index=index, seed=seed),
            batch_size=batch_size,
            steps_per_epoch=self.steps_per_epoch,
            positions=[np.asarray(item, dtype=np.int64) for item in positions],
            steps=range(first_step, first_step + num_steps),
        )
        self._pool = WorkerPool(
            BatchDataset(index, transform=transform, augmentation_seed=seed),
            batches=self._schedule,
            num_workers=num_workers,
        )

    def __len__(self) -> int:
        """How many items an iteration yields."""
        return len(self._schedule)

    def __iter__(self) -> Iterator[Batch]:
        """Yields, for every step and every item of `positions`, images and labels.

        Images are uint8 (samples, height, width, channels), labels int64 (samples,), in the order
        of the positions; on the CPU, in pinned memory where there is a GPU.

        Raises:
            UserError: A shard is missing or damaged; the message names shard and sample.
        """
        return iter(self._pool)


@dataclass(frozen=True)
class _Schedule:
    """The requests of every item of every step."""

    order: SampleOrder
    batch_size: int
    steps_per_epoch: int
    positions: Sequence[NDArray[np.int64]]
    steps: range

    def __len__(self) -> int:
        return len(self.steps) * len(self.positions)

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        for step in self.steps:
            epoch, place = divmod(step, self.steps_per_epoch)
            start = place * self.batch_size
            mini_batch = self.order.sample_ids(epoch, start=start, stop=start + self.batch_size)
            for item in self.positions:
                yield [(epoch, sample_id) for sample_id in mini_batch[item].tolist()]


def _check_batch_size(batch_size: int, index: SampleIndex) -> None:
    if not 1 <= batch_size <= index.num_samples:
        raise UserError(
            f"batch_size: {batch_size} does not fit the {index.num_samples} samples of "
            f"{index.directory}; 1 … {index.num_samples} would"
        )


def _check_positions(item: Sequence[int], batch_size: int) -> None:
    is_distinct = len(set(item)) == len(item) > 0
    if not is_distinct or min(item) < 0 or max(item) >= batch_size:
        raise UserError(
            f"positions: {list(item)} are not different places in 0 … {batch_size - 1} "
            f"(batch_size {batch_size})"
        )
