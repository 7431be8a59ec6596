"""A source of samples for `webdataset.DataPipeline`, in the order of a run.

    pipeline = webdataset.DataPipeline(
        ScheduledShards(index, order="lanes", seed=0, batch_size=256, positions=[range(256)],
                        first_step=0, num_steps=1000),
        webdataset.decode("rgb8"), webdataset.to_tuple("jpg", "cls"), webdataset.batched(256),
    )

Stages that keep samples one to one are fine behind it (`decode`, `map`, `to_tuple`, `batched` with
the number of positions of an item). Those that drop, repeat or shuffle samples (`select`,
`shuffle`, handlers that continue after an error) take away what this source is for.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from data_pipelines.index import SampleIndex
from data_pipelines.loading.items import Item
from data_pipelines.loading.schedule import MiniBatchSchedule
from data_pipelines.loading.step_plan import StepPlan
from data_pipelines.reading import ShardReader
from data_pipelines.sources import ShardSource, open_source


class ScheduledShards(IterableDataset[dict[str, Any]]):
    """One rank's samples of consecutive steps, undecoded, as `webdataset` represents them.

    A sample is a dict of `__key__`, `__url__` (its shard), `__epoch__`, `__sample_id__` and the
    bytes of each of its files, by extension. Checksums are checked. With several `DataLoader`
    workers, each takes every so manyth item, so that batches of whole items come in order.
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
        source: ShardSource | None = None,
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
        self._index = index
        self._source = open_source(index.shards_in) if source is None else source
        self._reader = ShardReader(index.with_decoder(_Undecoded()), source=self._source)
        self._plan = StepPlan(index, schedule=schedule, first_step=first_step, num_steps=num_steps)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the samples in order.

        Raises:
            UserError: A shard is missing or damaged; the message names shard and sample.
        """
        worker = get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for item in islice(self._plan, number, None, num_workers):
            yield from self._samples(item)

    def state_dict(self, *, steps_done: int) -> dict[str, Any]:
        """Returns what a checkpoint needs to go on, on any number of ranks and workers.

        Args:
            steps_done: Steps done over all epochs; the stage does not know what of its samples was
                used.
        """
        return self._plan.state(steps_done).model_dump()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a saved state says; the last step stays the one that was given.

        Raises:
            UserError: The state is of other data, another seed or, within an epoch, another order.
        """
        self._plan.go_on(state)

    def _samples(self, item: Item) -> list[dict[str, Any]]:
        ids = item.sample_ids.tolist()
        # They are read as they lie in the shards, and handed on in the order of the item.
        payloads: dict[int, Any] = dict(self._reader.read(ids))
        shards = self._index.samples["shard"][item.sample_ids].tolist()
        return [
            {
                "__key__": self._index.key(sample_id),
                "__url__": self._source.where(self._index.meta.shards[shards[place]].name),
                "__epoch__": item.epoch,
                "__sample_id__": sample_id,
                **payloads[place],
            }
            for place, sample_id in enumerate(ids)
        ]


class _Undecoded:
    """Takes the place of a decoder and leaves the bytes as they are."""

    def decode(self, payloads: Mapping[str, bytes]) -> dict[str, bytes]:
        return dict(payloads)
