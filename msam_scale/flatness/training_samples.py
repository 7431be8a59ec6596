"""A run's training samples, as flatness is measured over them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from data_pipelines import EvaluationLoader, GlobalOrder
from msam_scale.batch_tree import Batch, copied
from msam_scale.config import Config

if TYPE_CHECKING:  # the training loop measures, too
    from msam_scale.training.data import RunData


class TrainingSamples:
    """A rank's part of a run's training samples, in a random order, without augmentation.

    The order is that of the run's first epoch under `data.order: global`, and the samples are the
    first ones in it; batch j is for rank j mod the number of ranks. Batches are kept in memory
    where all of them fit into `data.memory_limit`.

    Args:
        data: the run's.
        config: the run's.
        num_samples: how many over all ranks, at most; None: all.
        batch_size: of a batch; the last one may have fewer.
        rank: this one.
        num_ranks: that share the samples.

    Attributes:
        batch_size: of a batch.
        num_samples: of all.
    """

    def __init__(
        self,
        data: RunData,
        config: Config,
        *,
        num_samples: int | None,
        batch_size: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        index = data.train.index
        self.num_samples = min(num_samples or index.num_samples, index.num_samples)
        self.batch_size = min(batch_size, self.num_samples)
        order = GlobalOrder.for_index(index, seed=config.run.seed)
        self._loader = EvaluationLoader(
            index,
            batch_size=self.batch_size,
            rank=rank,
            num_ranks=num_ranks,
            transform=data.task.transform,
            num_workers=config.data.workers,
            max_host_bytes=config.data.memory_limit,
            source=data.train.source,
            sample_ids=order.sample_ids(0, start=0, stop=self.num_samples),
        )
        self._fits = data.task.num_bytes(self.num_samples) <= config.data.memory_limit
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if not self._fits:
            return iter(self._loader)
        if self._kept is None:
            # What the loader yields lies in memory that it uses again.
            self._kept = [copied(batch) for batch in self._loader]
        return iter(self._kept)
