"""Loads batches in worker processes, ahead of their use, in bounded memory and in order."""

import multiprocessing
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from data_pipelines.errors import UserError
from data_pipelines.loading.batchers import Batch, Batcher
from data_pipelines.loading.dataset import LoadedPart, PartDataset
from data_pipelines.loading.items import Item, Part, parts_of, samples_per_part
from data_pipelines.loading.slots import SlotMemory, SlotRing
from data_pipelines.loading.source import SplitSource
from data_pipelines.loading.worker_process import START_METHOD, follow_parent
from data_pipelines.reading import BadSamples

DEFAULT_HOST_BYTES = 1 << 30

# The batch in use and the one that is being copied to the device.
_MAX_LENT = 2
# Parts on their way for each worker; more would only take memory.
_MOST_AHEAD = 4
# How torch's `DataLoader` says so, in a `RuntimeError` as for anything else.
_WORKER_KILLED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?(killed by signal: [\w ]+|exited.*)"
)


def killed_worker(error: BaseException) -> UserError | None:
    """What to say of an error that tells that a loader process was killed; None for any other.

    torch raises it wherever the main thread of the process that loads happens to be.
    """
    found = _WORKER_KILLED.search(" ".join(str(error).split()))
    if found is None or not isinstance(error, RuntimeError):
        return None
    return UserError(
        f"lost a loader process (pid {found[1]}, {found[2]}), probably for want of memory; start "
        "again, with fewer data.workers, smaller batches or more memory"
    )


@dataclass(frozen=True)
class PoolPlan:
    """How much is loaded ahead.

    Attributes:
        part_size: Samples that a worker loads at a time.
        parts_ahead: Parts on their way for each worker.
        num_slots: Batches there is memory for.
    """

    part_size: int
    parts_ahead: int
    num_slots: int

    @classmethod
    def within(
        cls, max_host_bytes: int, *, item_bytes: int, num_rows: int, num_workers: int
    ) -> "PoolPlan":
        """Returns the plan that loads furthest ahead within a limit of memory.

        Args:
            max_host_bytes: The limit.
            item_bytes: Size of the largest item.
            num_rows: How many samples it has.
            num_workers: Processes that load; 0 loads in this one.

        Raises:
            UserError: Not even one part for each worker fits.
        """
        part_size = samples_per_part(max(1, item_bytes // num_rows))
        parts_per_item = -(-num_rows // part_size)
        for parts_ahead in range(_MOST_AHEAD, 0, -1):
            # The parts on their way, and one more that is being handed over, touch so many items.
            on_their_way = -(-num_workers * parts_ahead // parts_per_item) + 1
            num_slots = on_their_way + _MAX_LENT
            if num_slots * item_bytes <= max_host_bytes or num_workers == 0:
                break
        if num_slots * item_bytes > max_host_bytes:
            raise UserError(
                f"max_host_bytes: {max_host_bytes} is too little for {num_workers} workers and "
                f"batches of {item_bytes} bytes; {num_slots * item_bytes} or more would work, or "
                "fewer workers, or smaller batches"
            )
        return cls(part_size, parts_ahead, num_slots)


class WorkerPool:
    """Loads a sequence of items ahead of their use; they come out in the order asked for.

    Items are loaded by torch's `DataLoader` workers into memory that is shared with them and made
    once; only the number of a slot goes through the workers' queues.
    """

    def __init__(
        self,
        source: SplitSource,
        *,
        items: Iterable[Item],
        num_rows: int,
        max_length: int,
        num_workers: int,
        max_host_bytes: int,
        resident: bool,
    ) -> None:
        """Starts nothing yet.

        Args:
            source: The split.
            items: What to load; can be iterated again and again.
            num_rows: Samples of the largest item.
            max_length: For text, tokens of the longest sample; 0 for images.
            num_workers: Processes that load, one thread each; 0 loads in this process.
            max_host_bytes: Bounds the memory of all batches that are there at once, and of the
                samples if they are resident.
            resident: Whether all samples are read once and then kept in memory.

        Raises:
            UserError: The number of workers is negative.
        """
        if num_workers < 0:
            raise UserError(f"num_workers: {num_workers} is negative; 0 loads in this process")
        self._source = source
        self._items = items
        self._num_rows = num_rows
        self._max_length = max_length
        self._num_workers = num_workers
        self._max_host_bytes = max_host_bytes
        self._resident = resident
        self._started: _StartedPool | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches from the first on; ends an earlier iteration.

        Raises:
            UserError: A batch could not be loaded, or there is too little memory for batches.
        """
        if self._started is None:
            first = next(iter(self._items), None)
            if first is None:
                return
            self._started = self._start(first)
        yield from self._started.iterate()

    def _start(self, first: Item) -> "_StartedPool":
        room = self._max_host_bytes
        if self._resident:
            room -= self._source.make_resident(max_bytes=room)
        batcher = self._source.batcher(first_sample=int(first.sample_ids[0]), epoch=first.epoch)
        layout = batcher.layout(self._num_rows, length=self._max_length)
        plan = PoolPlan.within(
            room,
            item_bytes=layout.num_bytes,
            num_rows=self._num_rows,
            num_workers=self._num_workers,
        )
        memory = SlotMemory(num_slots=plan.num_slots, slot_bytes=layout.num_bytes)
        return _StartedPool(
            PartDataset(self._source, batcher=batcher, memory=memory),
            bad_samples=self._source.bad_samples,
            batcher=batcher,
            memory=memory,
            items=self._items,
            plan=plan,
            num_workers=self._num_workers,
        )


class _StartedPool:
    """The workers and the memory they share."""

    def __init__(
        self,
        dataset: PartDataset,
        *,
        bad_samples: BadSamples,
        batcher: Batcher,
        memory: SlotMemory,
        items: Iterable[Item],
        plan: PoolPlan,
        num_workers: int,
    ) -> None:
        self._bad_samples = bad_samples
        self._batcher = batcher
        self._memory = memory
        self._ring = SlotRing(memory, max_lent=_MAX_LENT)
        self._parts = _Parts(items, ring=self._ring, part_size=plan.part_size)
        self._is_pinned = False
        self._iteration = 0
        self._loader: DataLoader[LoadedPart | UserError] = DataLoader(
            dataset,
            sampler=self._parts,
            batch_size=None,
            num_workers=num_workers,
            multiprocessing_context=START_METHOD if num_workers else None,
            prefetch_factor=plan.parts_ahead if num_workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=follow_parent,
            persistent_workers=num_workers > 0,
            in_order=True,
            # Without its own, every iteration would draw the workers' seed from the global stream
            # and so disturb whatever else is random in this process.
            generator=torch.Generator(),
        )

    def iterate(self) -> Iterator[Batch]:
        self._iteration += 1
        iteration = self._iteration
        num_loaded = 0
        for loaded in self._loaded_parts():
            assert iteration == self._iteration, "this iteration was ended by a later one"
            if isinstance(loaded, UserError):
                # A new error: one raised here while this frame holds it would be a reference cycle,
                # and workers freed by the garbage collector take seconds to stop.
                raise UserError(str(loaded))
            under_way = self._parts.under_way[0]
            assert loaded.slot == under_way.slot, (loaded, under_way)
            self._bad_samples.merge(loaded.bad_samples)
            num_loaded += loaded.num_samples
            if num_loaded < under_way.num_samples:
                continue
            self._parts.under_way.popleft()
            num_loaded = 0
            yield self._batch(under_way)

    def _loaded_parts(self) -> Iterator[LoadedPart | UserError]:
        """Yields what the workers load, and says it clearly when one of them was killed."""
        loaded_parts: Iterator[LoadedPart | UserError] | None = None
        while True:
            try:
                if loaded_parts is None:
                    _check_room(self._loader.num_workers)
                    loaded_parts = iter(self._loader)
                    self._pin()  # not before the workers are started
                loaded = next(loaded_parts)
            except StopIteration:
                return
            except RuntimeError as error:
                if (killed := killed_worker(error)) is None:
                    raise
            else:
                yield loaded
                continue
            raise killed

    def _batch(self, loaded: "_UnderWay") -> Batch:
        item = loaded.item
        layout = self._batcher.layout(len(item.sample_ids), length=item.length)
        return self._batcher.batch(dict(layout.tensors(self._ring.lend(loaded.slot))), item)

    def _pin(self) -> None:
        if torch.cuda.is_available() and not self._is_pinned:
            self._is_pinned = self._memory.shared.pin()


@dataclass(frozen=True)
class _UnderWay:
    """An item that was handed to the workers.

    Attributes:
        item: What it is.
        slot: Where it goes.
        num_samples: How many different samples it has.
    """

    item: Item
    slot: int
    num_samples: int


class _Parts:
    """The parts of all items, each with its slot; what `DataLoader` takes for a sampler.

    Attributes:
        under_way: The items that were handed to the workers, in order.
    """

    def __init__(self, items: Iterable[Item], *, ring: SlotRing, part_size: int) -> None:
        self._items = items
        self._ring = ring
        self._part_size = part_size
        self.under_way: deque[_UnderWay] = deque()

    def __iter__(self) -> Iterator[Part]:
        # When the first part is asked for, the workers are done with all of an earlier iteration:
        # `DataLoader` waits for that before it hands out new work.
        self._ring.free_all_but_lent()
        self.under_way.clear()
        for item in self._items:
            slot = self._ring.take()
            parts = list(parts_of(item, slot=slot, part_size=self._part_size))
            num_samples = sum(len(part.sample_ids) for part in parts)
            self.under_way.append(_UnderWay(item, slot, num_samples))
            yield from parts


def _check_room(num_workers: int) -> None:
    """Makes what worker processes need, and drops it: torch's loader, half made, ends noisily.

    Raises:
        OSError: More files are open than a process may have, or shared memory is full.
    """
    pipes: list[int] = []
    try:
        queues: list[object] = [multiprocessing.SimpleQueue() for _ in range(3 * num_workers)]
        for _ in range(2 * num_workers):
            pipes += os.pipe()
        del queues
    finally:
        for descriptor in pipes:
            os.close(descriptor)


def _as_it_is(loaded: Any) -> Any:
    return loaded
