"""The memory that batches are loaded into: bounded, used again, never under someone's hands."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from shards import indexed, npy, write_shards

from data_pipelines import MicroBatchLoader, SampleIndex, UserError, transform_preset
from data_pipelines.loading import DevicePrefetcher
from data_pipelines.loading.layout import BatchLayout, Field
from data_pipelines.loading.shared_memory import SharedMemory
from data_pipelines.loading.slots import SlotMemory, SlotRing
from data_pipelines.loading.worker_pool import PoolPlan

MakeNumbered = Callable[..., SampleIndex]


def make_loader(index: SampleIndex, **changes: Any) -> MicroBatchLoader:
    settings: dict[str, Any] = {
        "batch_size": 8,
        "num_steps": 20,
        "num_workers": 0,
        "max_host_bytes": 1 << 20,
        **changes,
    }
    return MicroBatchLoader(
        index,
        order="global",
        seed=0,
        positions=[range(settings["batch_size"])],
        transform=transform_preset("none"),
        first_step=0,
        **settings,
    )


def ring(*, num_slots: int = 4, max_lent: int = 2) -> tuple[SlotMemory, SlotRing]:
    memory = SlotMemory(num_slots=num_slots, slot_bytes=64)
    return memory, SlotRing(memory, max_lent=max_lent)


def test_a_slot_is_free_again_when_the_last_view_of_it_is_gone() -> None:
    memory, slots = ring(num_slots=1)
    number = slots.take()
    memory.slot(number)[:] = 7
    block = slots.lend(number)
    view = block[8:16].view(torch.int64).view(1, 1)
    del block
    with pytest.raises(AssertionError):
        slots.take()
    del view
    assert slots.take() == number


def test_who_keeps_many_batches_gets_copies() -> None:
    memory, slots = ring(num_slots=3, max_lent=2)
    kept = []
    for value in range(6):
        number = slots.take()
        memory.slot(number)[:] = value
        kept.append(slots.lend(number))
    assert [set(block.tolist()) for block in kept] == [{value} for value in range(6)]


def test_slots_of_an_ended_iteration_come_back_but_not_those_in_use() -> None:
    _, slots = ring(num_slots=3)
    lent = slots.lend(slots.take())
    slots.take()
    slots.free_all_but_lent()
    assert len({slots.take(), slots.take()}) == 2
    with pytest.raises(AssertionError):
        slots.take()
    del lent
    slots.take()


def test_batches_use_the_same_memory_again_but_kept_ones_stay(make_numbered: MakeNumbered) -> None:
    index = make_numbered(51)
    expected, places = [], set()
    for images, _ in make_loader(index):
        expected.append(images.clone())
        places.add(images.data_ptr())
    # The loop still holds one batch while the next is made.
    assert len(places) <= 3
    for num_workers in (0, 2):
        kept = list(make_loader(index, num_workers=num_workers))
        assert all(torch.equal(a, b) for a, (b, _) in zip(expected, kept, strict=True))


def test_layout_puts_arrays_side_by_side() -> None:
    layout = BatchLayout(
        (Field("labels", torch.int64, (3,)), Field("images", torch.uint8, (3, 2, 5, 1)))
    )
    assert layout.num_bytes == 128
    block = np.full(200, 255, np.uint8)
    arrays = layout.arrays(block)
    arrays["labels"][:] = [1, 2, 3]
    arrays["images"][:] = 4
    tensors = dict(layout.tensors(torch.from_numpy(block)))
    assert tensors["labels"].tolist() == [1, 2, 3]
    assert tensors["images"].shape == (3, 2, 5, 1)
    labels = np.array([1, 2, 3]).view(np.uint8).tolist()
    assert block.tolist() == [*labels, *[255] * 40, *[4] * 30, *[255] * 106]


def write_far(memory: SharedMemory) -> None:
    memory.array[5] = 9


def test_memory_is_shared_with_processes_that_are_started() -> None:
    memory = SharedMemory(4096)
    process = torch.multiprocessing.get_context("spawn").Process(target=write_far, args=(memory,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert memory.array[5] == 9


def test_nothing_is_left_in_shared_memory_or_open(make_numbered: MakeNumbered) -> None:
    def open_files() -> list[str]:
        folder = Path("/proc/self/fd")
        names = [str(each.readlink()) for each in folder.iterdir() if each.is_symlink()]
        return [name for name in names if "data_pipelines" in name]

    gc.collect()
    before = open_files()
    batches = make_loader(make_numbered(20))
    assert len(list(batches)) == 20
    assert len(open_files()) > len(before)
    del batches
    gc.collect()
    assert open_files() == before


@pytest.mark.parametrize(
    ("limit_mib", "num_workers", "parts_ahead"), [(4096, 8, 4), (700, 8, 4), (390, 8, 2)]
)
def test_loading_ahead_fits_the_limit(limit_mib: int, num_workers: int, parts_ahead: int) -> None:
    item_bytes = 512 * 224 * 224 * 3
    plan = PoolPlan.within(
        limit_mib << 20, item_bytes=item_bytes, num_rows=512, num_workers=num_workers
    )
    assert (plan.part_size, plan.parts_ahead) == (64, parts_ahead)
    assert plan.num_slots * item_bytes <= limit_mib << 20


def test_too_little_memory_is_named_and_the_named_is_enough(make_numbered: MakeNumbered) -> None:
    index = make_numbered(20)
    with pytest.raises(UserError, match=r"max_host_bytes: 200 is too little .* (\d+) or more"):
        list(make_loader(index, max_host_bytes=200))
    with pytest.raises(UserError) as caught:
        list(make_loader(index, num_workers=2, max_host_bytes=1))
    enough = int(str(caught.value).split(" or more")[0].rpartition(" ")[2])
    del caught
    assert len(list(make_loader(index, num_workers=2, max_host_bytes=enough))) == 20


def large_images(directory: Path, *, side: int, num_samples: int) -> SampleIndex:
    """Images whose first byte is their number."""
    images = np.random.default_rng(0).integers(0, 256, (num_samples, side, side, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(num_samples)
    samples = [{"npy": npy(image), "cls": b"%d" % number} for number, image in enumerate(images)]
    return indexed(write_shards(directory, samples, per_shard=40))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_several_parts_are_whole(tmp_path: Path, num_workers: int) -> None:
    """150 large samples are loaded as 64, 64 and 22, maybe by different workers."""
    index = large_images(tmp_path / "large", side=80, num_samples=160)
    batches = make_loader(
        index, batch_size=150, num_steps=3, num_workers=num_workers, max_host_bytes=1 << 25
    )
    for images, labels in batches:
        assert len(set(labels.tolist())) == 150
        assert images[:, 0, 0, 0].tolist() == labels.tolist()
        # The rest of each image too, of the last part as of the first.
        assert images[:, -1].float().std(dim=(1, 2)).min() > 50


def private_bytes() -> int:
    """Memory of this process and its workers that is not shared with others."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(process.memory_full_info().uss for process in processes)


@pytest.mark.part("memory")
def test_memory_is_flat_over_epochs(tmp_path: Path) -> None:
    index = large_images(tmp_path / "large", side=200, num_samples=160)  # 19 MB
    batches = iter(
        make_loader(index, batch_size=16, num_workers=2, num_steps=60, max_host_bytes=1 << 30)
    )
    used = []
    for epoch in range(6):
        for _ in range(10):
            images, _ = next(batches)
        used.append(private_bytes())
        assert images.shape == (16, 200, 200, 3), epoch
    # Two epochs to come to rest; then 76 MB of samples go through without a trace.
    assert max(used[3:]) < used[2] + 4_000_000


def test_prefetcher_moves_batches_where_there_is_no_stream(make_numbered: MakeNumbered) -> None:
    index = make_numbered(20)
    moved = DevicePrefetcher(make_loader(index), device=torch.device("meta"))
    shapes = [
        (images.device.type, tuple(images.shape), labels.shape[0]) for images, labels in moved
    ]
    assert shapes == [("meta", (8, 2, 2, 1), 8)] * 20
    same = DevicePrefetcher(make_loader(index), device=torch.device("cpu"))
    for (images, labels), (more, others) in zip(same, make_loader(index), strict=True):
        assert torch.equal(images, more)
        assert torch.equal(labels, others)
