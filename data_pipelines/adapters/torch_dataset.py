"""A plain `Dataset` and a batch sampler for torch's own `DataLoader`.

    dataset = IndexedDataset(index, seed=0, transform=transform)
    sampler = MiniBatchSampler(index, order="global", seed=0, batch_size=256,
                               positions=[range(256)], first_step=0, num_steps=1000)
    for images, labels in DataLoader(dataset, batch_sampler=sampler, num_workers=4):
        ...

The batches are those of `MicroBatchLoader`, with any number of workers. It is the slower way: every
batch is put together once more by `DataLoader`, and sent through shared memory made for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading.schedule import MiniBatchSchedule
from data_pipelines.loading.step_plan import StepPlan
from data_pipelines.order.mixing import checked_seed
from data_pipelines.reading import ShardReader
from data_pipelines.sources import ShardSource
from data_pipelines.transforms.identity import augmented

# Which sample, and in which epoch: the augmentation depends on both.
SampleKey = tuple[int, int]
Transform = Callable[[NDArray[np.uint8], np.random.Generator], Any]


class IndexedDataset(Dataset[tuple[Any, int]]):
    """The images of a split with their labels, by (epoch, sample id)."""

    def __init__(
        self,
        index: SampleIndex,
        *,
        seed: int,
        transform: Transform | None = None,
        source: ShardSource | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            index: The split.
            seed: Of the augmentation; in [0, 2**63).
            transform: Takes an image, uint8 (height, width, channels), and the random stream that
                belongs to the sample in the epoch, and returns what the model needs; what it draws
                from elsewhere depends on the workers. A `TransformPreset`'s `augment` is one. By
                default images are returned as they are, as tensors.
            source: Reads the bytes of the shards; by default from the folder of the index.

        Raises:
            UserError: The split is text, or the seed is out of range.
        """
        if index.meta.tokens is not None:
            raise UserError(f"{index.directory}: holds text; `MicroBatchLoader` loads it")
        self._num_samples = index.num_samples
        self._reader = ShardReader(index, source=source)
        self._seed = checked_seed(seed)
        self._transform = transform

    def __len__(self) -> int:
        """How many samples there are."""
        return self._num_samples

    def __getitem__(self, key: SampleKey) -> tuple[Any, int]:
        """Returns the image and the label of a sample in an epoch.

        Raises:
            UserError: It cannot be read; the message names shard and sample.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[tuple[Any, int]]:
        """Returns several samples, which are read together; `DataLoader` prefers it."""
        found: dict[int, tuple[Any, int]] = {}
        for place, sample in self._reader.read([sample_id for _, sample_id in keys]):
            found[place] = self._transformed(sample.image, keys[place]), sample.label
        assert len(found) == len(keys), "the reader left samples out"
        return [found[place] for place in range(len(keys))]

    def _transformed(self, image: NDArray[np.uint8], key: SampleKey) -> Any:
        epoch, sample_id = key
        if self._transform is not None:
            image = augmented(
                self._transform, image, seed=self._seed, epoch=epoch, sample_id=sample_id
            )
        # Images as they are stored are views of what was read, which tensors must not write to.
        return torch.from_numpy(image.copy()) if isinstance(image, np.ndarray) else image


class MiniBatchSampler(Sampler[list[SampleKey]]):
    """One rank's batches of the mini-batches of consecutive steps, as (epoch, sample id).

    Attributes:
        steps_per_epoch: Full mini-batches in an epoch.
    """

    def __init__(
        self,
        index: SampleIndex,
        *,
        order: str,
        seed: int,
        batch_size: int,
        positions: Sequence[Sequence[int]],
        first_step: int,
        num_steps: int,
    ) -> None:
        """Checks the settings, which are those of `MicroBatchLoader`.

        Raises:
            UserError: A setting is out of range; the message names it and the bounds.
        """
        schedule = MiniBatchSchedule.of(
            index,
            order=order,
            seed=seed,
            batch_size=batch_size,
            micro_batches=1,
            positions=positions,
        )
        self._plan = StepPlan(index, schedule=schedule, first_step=first_step, num_steps=num_steps)
        self.steps_per_epoch = schedule.steps_per_epoch

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._plan)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yields the samples of each batch."""
        for item in self._plan:
            yield [(item.epoch, sample_id) for sample_id in item.sample_ids.tolist()]

    def state_dict(self, *, steps_done: int) -> dict[str, Any]:
        """Returns what a checkpoint needs to go on, on any number of ranks and workers.

        Args:
            steps_done: Steps done over all epochs; the sampler does not know, since `DataLoader`
                runs ahead of what was used.
        """
        return self._plan.state(steps_done).model_dump()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a saved state says; the last step stays the one that was given.

        Raises:
            UserError: The state is of other data, another seed or, within an epoch, another order.
        """
        self._plan.go_on(state)
