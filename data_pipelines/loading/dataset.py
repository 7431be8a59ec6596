"""The part of loading that runs in the workers: from sample ids to rows of a batch."""

from typing import NamedTuple

from torch.utils.data import Dataset

from data_pipelines.errors import UserError
from data_pipelines.loading.batchers import Batcher
from data_pipelines.loading.items import Part
from data_pipelines.loading.slots import SlotMemory
from data_pipelines.loading.source import SplitSource
from data_pipelines.reading import BadSample


class LoadedPart(NamedTuple):
    """Says that a part lies in its slot; all that has to be sent from a worker.

    Attributes:
        slot: Which slot.
        num_samples: How many samples were loaded.
        bad_samples: Damaged samples that the worker has met for the first time.
    """

    slot: int
    num_samples: int
    bad_samples: list[BadSample]


class PartDataset(Dataset[LoadedPart | UserError]):
    """Reads, decodes and transforms the samples of a part straight into their slot."""

    def __init__(self, source: SplitSource, *, batcher: Batcher, memory: SlotMemory) -> None:
        """Opens nothing yet.

        Args:
            source: Reads the samples.
            batcher: Puts them into the batch.
            memory: Where the batches go.
        """
        self._reader = source.reader
        self._bad_samples = source.bad_samples
        self._batcher = batcher
        self._memory = memory

    def __getitem__(self, part: Part) -> LoadedPart | UserError:
        """Loads a part, and returns what is wrong with the data if something is.

        The error is returned and not raised: raised in a worker, it would reach the user wrapped in
        that worker's traceback.
        """
        try:
            return self._load(part)
        except UserError as error:
            return error

    def _load(self, part: Part) -> LoadedPart:
        layout = self._batcher.layout(part.num_rows, length=part.length)
        arrays = layout.arrays(self._memory.slot(part.slot))
        self._batcher.load(part, arrays=arrays, reader=self._reader)
        for row, first in part.copies:
            for array in arrays.values():
                array[row] = array[first]
        return LoadedPart(part.slot, len(part.sample_ids), self._bad_samples.take_new())
