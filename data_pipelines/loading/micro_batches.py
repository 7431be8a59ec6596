"""Training data: the same mini-batches on any number of ranks and workers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.index import SampleIndex
from data_pipelines.loading.batchers import Batch
from data_pipelines.loading.mixing import SampleMixing
from data_pipelines.loading.schedule import MiniBatchSchedule
from data_pipelines.loading.source import SplitSource
from data_pipelines.loading.step_plan import StepPlan
from data_pipelines.loading.worker_pool import DEFAULT_HOST_BYTES, WorkerPool
from data_pipelines.reading import BadDataPolicy
from data_pipelines.sources import ShardSource
from data_pipelines.transforms import TransformPreset


class MicroBatchLoader:
    """Yields one rank's part of the mini-batches of consecutive steps.

    Which samples form the mini-batch of a step, in which order, and how each is augmented follows
    from (order, seed, step, batch_size) and the data alone. `positions` says which of them this
    rank loads; it picks, and changes nothing. Iterating again starts again at `first_step`, or
    where a loaded state says.

    Attributes:
        steps_per_epoch: Full mini-batches in an epoch. The samples left over are others each epoch.
        bad_samples: The damaged samples that this rank has met, if they are replaced.
    """

    def __init__(
        self,
        index: SampleIndex,
        *,
        order: str,
        seed: int,
        batch_size: int,
        positions: Sequence[Sequence[int]],
        transform: TransformPreset | None,
        num_workers: int,
        first_step: int,
        num_steps: int,
        micro_batches: int = 1,
        max_host_bytes: int = DEFAULT_HOST_BYTES,
        resident: bool = False,
        mixing: SampleMixing | None = None,
        on_error: BadDataPolicy | None = None,
        source: ShardSource | None = None,
    ) -> None:
        """Checks the settings; workers start with the first iteration.

        Args:
            index: The split to train on.
            order: Name of the sample order, with its parameters; see `sample_order`.
            seed: Of the order and the augmentation; in [0, 2**63).
            batch_size: Samples of a mini-batch over all ranks.
            positions: For each item to yield within a step, the positions in the mini-batch it
                consists of, each in 0 … batch_size - 1, all in one micro-batch.
            transform: What is done to the images; None for text.
            num_workers: Processes that load; 0 loads in this one.
            first_step: Steps done before, over all epochs; where a resumed run goes on.
            num_steps: Steps to yield.
            micro_batches: Into how many equal parts, one after the other, the mini-batch is cut.
                Text is filled up to the longest of a part, so that the batches do not depend on how
                a part is spread over ranks.
            max_host_bytes: Bounds the memory of the batches that are loaded ahead and in use.
            resident: Reads all samples once and keeps them in memory; for small images. Not where
                damaged samples are replaced, by others in each epoch.
            mixing: Mixup and cutmix; batches are then `MixedBatch`es.
            on_error: What happens when a sample is damaged; by default an error.
            source: Reads the bytes of the shards; by default from the folder of the index.

        Raises:
            UserError: A setting is out of range; the message names it and the bounds.
        """
        split = SplitSource(
            index,
            transform=transform,
            augmentation_seed=seed,
            source=source,
            on_error=on_error,
        )
        schedule = MiniBatchSchedule.of(
            index,
            order=order,
            seed=seed,
            batch_size=batch_size,
            micro_batches=micro_batches,
            positions=positions,
            mixing=mixing,
            image_size=split.image_size,
        )
        self.steps_per_epoch = schedule.steps_per_epoch
        self.bad_samples = split.bad_samples
        self._plan = StepPlan(index, schedule=schedule, first_step=first_step, num_steps=num_steps)
        self._num_items_yielded = 0
        self._pool = WorkerPool(
            split,
            items=self._plan,
            num_rows=(1 if mixing is None else 2) * max(map(len, positions), default=1),
            max_length=0 if schedule.lengths is None else int(schedule.lengths.max()),
            num_workers=num_workers,
            max_host_bytes=max_host_bytes,
            resident=resident,
        )

    def __len__(self) -> int:
        """How many items an iteration yields."""
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        """Yields, for every step and every item of `positions`, a batch on the CPU.

        Of images: (images, labels), images uint8 (samples, height, width, channels), labels int64
        (samples,), in the order of the positions; or a `MixedBatch`. Of text: a dict of
        `input_ids`, what other rows the tokens have, `attention_mask`, all int64 (samples, tokens),
        and `labels`. A batch stays as it is as long as it is used; its memory is used again when it
        no longer is. In pinned memory where there is a CUDA device.

        Raises:
            UserError: A shard is missing or damaged; the message names shard and sample.
        """
        self._num_items_yielded = 0
        for batch in self._pool:
            self._num_items_yielded += 1
            yield batch

    def state_dict(self, *, steps_done: int | None = None) -> dict[str, Any]:
        """Returns what a checkpoint needs to go on from here, on any number of ranks and workers.

        Args:
            steps_done: Steps done over all epochs, where the caller knows it: something between
                loader and training may have asked for more than was used. By default those whose
                items were all yielded.
        """
        if steps_done is None:
            items_per_step = max(1, len(self._plan.schedule.positions))
            steps_done = self._plan.steps.start + self._num_items_yielded // items_per_step
        state = self._plan.state(steps_done, bad_samples=self.bad_samples.state())
        return state.model_dump()

    def load_state_dict(
        self, state: Mapping[str, Any], *, allows_new_partition: bool = False
    ) -> None:
        """Goes on where a saved state says; takes the same time anywhere in an epoch.

        Positions, workers and memory may differ from those of the loader that saved it. Within an
        epoch, order, batch size and micro-batches may not; at its end they may. The last step to be
        yielded stays the one that was given.

        Args:
            state: From `state_dict`.
            allows_new_partition: Whether micro-batches may change within an epoch. It changes what
                mSAM computes from here on.

        Raises:
            UserError: The state is of other data or another seed, or the loader would not go on
                with the samples that come next.
        """
        saved = self._plan.go_on(state, allows_new_partition=allows_new_partition)
        self.bad_samples.load_state(saved.model_dump()["bad_samples"])
        self._num_items_yielded = 0
