"""The memory that batches are loaded into: bounded, used again, never under someone's hands."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from shards import npy, write_shards

from data_pipelines import (
    EvaluationLoader,
    MicroBatchLoader,
    SampleIndex,
    UserError,
    index_shards,
    transform_preset,
)
from data_pipelines.loading import DevicePrefetcher
from data_pipelines.loading.layout import BatchLayout, Field
from data_pipelines.loading.shared_memory import SharedMemory
from data_pipelines.loading.slots import SlotMemory, SlotRing
from data_pipelines.loading.worker_pool import PoolPlan

MakeNumbered = Callable[..., SampleIndex]
NONE = transform_preset("none")


def make_loader(
    index: SampleIndex, *, num_steps: int = 20, num_workers: int = 0, max_host_bytes: int = 1 << 20
) -> MicroBatchLoader:
    return MicroBatchLoader(
        index,
        order="global",
        seed=0,
        batch_size=8,
        positions=[range(8)],
        transform=NONE,
        num_workers=num_workers,
        first_step=0,
        num_steps=num_steps,
        max_host_bytes=max_host_bytes,
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


def test_batches_use_the_same_memory_again(make_numbered: MakeNumbered) -> None:
    places = {images.data_ptr() for images, _ in make_loader(make_numbered(51))}
    # The loop still holds one batch while the next is made.
    assert len(places) <= 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_kept_batches_stay_as_they_were(make_numbered: MakeNumbered, num_workers: int) -> None:
    index = make_numbered(51)
    expected = [images.clone() for images, _ in make_loader(index, num_workers=num_workers)]
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
    assert block[:94].tolist() == [
        *np.array([1, 2, 3]).view(np.uint8),
        *[255] * 40,
        *[4] * 30,
    ]
    assert set(block[94:].tolist()) == {255}


def write_far(memory: SharedMemory) -> None:
    memory.array[5] = 9


def test_memory_is_shared_with_processes_that_are_started() -> None:
    memory = SharedMemory(4096)
    context = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=write_far, args=(memory,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert memory.array[5] == 9


def test_nothing_is_left_in_shared_memory_or_open(make_numbered: MakeNumbered) -> None:
    def open_files() -> list[str]:
        folder = Path("/proc/self/fd")
        names = [str(each.readlink()) for each in folder.iterdir() if each.is_symlink()]
        return [name for name in names if "data_pipelines" in name]

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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_little_memory_is_named(make_numbered: MakeNumbered, num_workers: int) -> None:
    batches = make_loader(make_numbered(20), num_workers=num_workers, max_host_bytes=200)
    with pytest.raises(UserError, match=r"max_host_bytes: 200 is too little .* (\d+) or more"):
        list(batches)


def test_the_named_memory_is_enough(make_numbered: MakeNumbered) -> None:
    index = make_numbered(20)
    with pytest.raises(UserError) as caught:
        list(make_loader(index, num_workers=2, max_host_bytes=1))
    enough = int(str(caught.value).split(" or more")[0].rpartition(" ")[2])
    del caught
    assert len(list(make_loader(index, num_workers=2, max_host_bytes=enough))) == 20


def big_images(directory: Path, num_samples: int) -> SampleIndex:
    rng = np.random.default_rng(0)
    images: list[NDArray[np.uint8]] = [
        rng.integers(0, 256, (200, 200, 3), dtype=np.uint8) for _ in range(num_samples)
    ]
    samples = [{"npy": npy(image), "cls": b"0"} for image in images]
    return index_shards(
        write_shards(directory, samples, per_shard=40),
        split="big",
        num_classes=1,
        preshuffle_seed=0,
        created_by="a test",
    )


def private_bytes() -> int:
    """Memory of this process and its workers that is not shared with others."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(process.memory_full_info().uss for process in processes)


def test_memory_is_flat_over_epochs(tmp_path: Path) -> None:
    index = big_images(tmp_path / "big", 160)  # 19 MB
    batches = iter(
        MicroBatchLoader(
            index,
            order="global",
            seed=0,
            batch_size=16,
            positions=[range(16)],
            transform=NONE,
            num_workers=2,
            first_step=0,
            num_steps=60,
        )
    )
    used = []
    for epoch in range(6):
        for _ in range(10):
            images, _ = next(batches)
        used.append(private_bytes())
        assert images.shape == (16, 200, 200, 3), epoch
    # Two epochs to come to rest; then 76 MB of samples go through without a trace.
    assert max(used[3:]) < used[2] + 4_000_000


def test_evaluation_keeps_to_the_limit_too(make_numbered: MakeNumbered) -> None:
    batches = EvaluationLoader(
        make_numbered(20),
        batch_size=8,
        rank=0,
        num_ranks=1,
        transform=NONE,
        num_workers=0,
        max_host_bytes=100,
    )
    with pytest.raises(UserError, match="max_host_bytes: 100 is too little"):
        list(batches)


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
