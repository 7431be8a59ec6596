"""Runs a `BatchDataset` in worker processes, in order."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from data_pipelines.errors import UserError
from data_pipelines.loading.dataset import Batch, BatchDataset, SampleRequest


class WorkerPool:
    """Loads a sequence of batches ahead of their use; they come out in the order asked for."""

    def __init__(
        self,
        dataset: BatchDataset,
        *,
        batches: Iterable[list[SampleRequest]],
        num_workers: int,
    ) -> None:
        """Starts nothing yet.

        Args:
            dataset: Loads a batch.
            batches: The samples of each batch; can be iterated again and again.
            num_workers: Processes that load, one thread each; 0 loads in this process.
        """
        if num_workers < 0:
            raise UserError(f"num_workers: {num_workers} is negative; 0 loads in this process")
        self._loader: DataLoader[Batch | UserError] = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            in_order=True,
            # Without its own, every iteration would draw the workers' seed from the global stream
            # and so disturb whatever else is random in this process.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches from the first on.

        Raises:
            UserError: A batch could not be loaded.
        """
        for batch in self._loader:
            if isinstance(batch, UserError):
                # A new error: one raised here while this frame holds it would be a reference cycle,
                # and workers freed by the garbage collector take seconds to stop.
                raise UserError(str(batch))
            images, labels = batch
            yield images, labels


def _as_it_is(batch: Any) -> Any:
    return batch
