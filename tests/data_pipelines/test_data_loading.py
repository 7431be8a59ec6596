"""The loaders of training and evaluation, streamed and resident, with workers and without."""

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from shards import damage_sample, make_photos

from data_pipelines import (
    EvaluationLoader,
    MicroBatchLoader,
    PreparedDataset,
    SampleIndex,
    TransformPreset,
    UserError,
    transform_preset,
)

MakeNumbered = Callable[..., SampleIndex]
NONE = transform_preset("none")
BATCH_SIZE = 8
WHOLE = [range(BATCH_SIZE)]


def loader(
    index: SampleIndex, positions: Sequence[Sequence[int]] = WHOLE, **changes: Any
) -> MicroBatchLoader:
    settings: dict[str, Any] = {
        "order": "global",
        "seed": 5,
        "batch_size": BATCH_SIZE,
        "transform": NONE,
        "num_workers": 0,
        "first_step": 0,
        "num_steps": 12,
        **changes,
    }
    return MicroBatchLoader(index, positions=positions, **settings)


def evaluation(index: SampleIndex, **changes: Any) -> EvaluationLoader:
    settings = {"rank": 0, "num_ranks": 1, "transform": NONE, "num_workers": 0, **changes}
    return EvaluationLoader(index, batch_size=BATCH_SIZE, **settings)


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].int() + 256 * images[:, 0, 1, 0].int()).tolist()


def images_of(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([images for images, _ in batches])


def test_an_epoch_has_every_sample_once_and_the_next_another_order(
    make_numbered: MakeNumbered,
) -> None:
    batches = loader(make_numbered(48), num_steps=18)
    assert batches.steps_per_epoch == 6
    seen = numbers(images_of(batches))
    epochs = [seen[48 * epoch : 48 * (epoch + 1)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(48)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_left_over_samples_are_others_each_epoch(make_numbered: MakeNumbered) -> None:
    batches = loader(make_numbered(15), num_steps=20)
    assert batches.steps_per_epoch == 1
    left_over = {frozenset(range(15)) - set(numbers(images)) for images, _ in batches}
    assert all(len(each) == 7 for each in left_over)
    assert len(left_over) > 15


def test_positions_pick_in_their_order(make_numbered: MakeNumbered) -> None:
    index = make_numbered(51)
    parts = iter(loader(index, [[7, 5, 6], [3], [0, 4]]))
    for whole, labels in loader(index):
        assert (whole.dtype, tuple(whole.shape)) == (torch.uint8, (8, 2, 2, 1))
        assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (8,))
        assert labels.tolist() == [number % 7 for number in numbers(whole)]
        for item in ([7, 5, 6], [3], [0, 4]):
            images, _ = next(parts)
            assert torch.equal(images, whole[item])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterating_again_starts_again_even_after_a_break(
    make_numbered: MakeNumbered, num_workers: int
) -> None:
    batches = loader(make_numbered(51), num_workers=num_workers)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = [images for images, _ in batches]
    assert len(first) == len(batches) == 12
    for step, (images, _) in enumerate(batches):
        assert torch.equal(images, first[step])
        if step == 3:
            break
    assert torch.equal(images_of(batches), torch.cat(first))
    # Loading leaves the global random streams to others.
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_reaches_the_user_as_one_clear_line(
    make_numbered: MakeNumbered, num_workers: int
) -> None:
    index = make_numbered(30)
    damage_sample(index, 13)
    message = ""
    try:
        list(loader(index, num_workers=num_workers))
    except UserError as error:  # pytest.raises would keep the workers alive in a reference cycle
        message = str(error)
    assert message.startswith(str(index.shard_path(1)))
    assert "'sample13': damaged" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 31}, r"batch_size: 31 does not fit the 30 samples of .*1 … 30 would"),
        ({"batch_size": 0}, r"batch_size: 0 does not fit"),
        ({"num_workers": -1}, r"num_workers: -1 is negative"),
        ({"first_step": -1}, r"first_step -1"),
        ({"seed": -1}, r"seed: -1"),
        ({"batch_size": 4}, r"positions: \[0, .* 7\] are not different places in 0 … 3"),
        ({"order": "globl"}, r"unknown order 'globl': did you mean 'global'\?"),
    ],
)
def test_impossible_settings_are_named(
    make_numbered: MakeNumbered, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        loader(make_numbered(30), **settings)


@pytest.mark.parametrize(
    ("transform", "num_workers"), [("none", 0), ("cifar_basic", 0), ("cifar_zero:cutout=4", 2)]
)
def test_resident_samples_give_the_same_batches(
    digits: PreparedDataset, transform: str, num_workers: int
) -> None:
    index = SampleIndex.open(digits.splits["val"])
    preset = transform_preset(transform.replace("cutout=4", "cutout=4,statistics=none"))
    settings = {"batch_size": 90, "transform": preset, "num_steps": 6}
    positions = [range(60), range(60, 90)]
    streamed = [
        tensor.clone() for batch in loader(index, positions, **settings) for tensor in batch
    ]
    resident = loader(index, positions, resident=True, num_workers=num_workers, **settings)
    found = [tensor.clone() for batch in resident for tensor in batch]
    assert all(torch.equal(a, b) for a, b in zip(streamed, found, strict=True))


def test_resident_shards_are_read_once_and_bounded(make_numbered: MakeNumbered) -> None:
    index = make_numbered(40)
    with pytest.raises(UserError, match=r"resident: .* take 160 bytes, more than .*\(150\)"):
        list(loader(index, resident=True, max_host_bytes=150))
    train, val = iter(loader(index, resident=True)), iter(evaluation(index, resident=True))
    first = next(val)[0].clone()
    next(train)
    for shard in index.directory.glob("*.tar"):
        shard.write_bytes(b"")
    assert len(list(train)) == 11
    assert numbers(torch.cat([first, images_of(val)])) == list(range(40))


def test_images_augmented_together_are_those_augmented_one_by_one(tmp_path: Path) -> None:
    """With another way of asking for the same: `augment` of a preset without `augment_batch`."""
    index = make_photos(tmp_path / "photos", 40)
    preset = transform_preset("cifar_basic:cutout=6")
    assert preset.augment_batch is not None
    singly = dataclasses.replace(preset, augment_batch=None)
    # Three epochs, since each augments anew.
    settings = {"batch_size": 20, "num_steps": 6}
    together = images_of(loader(index, [range(20)], transform=preset, **settings))
    assert torch.equal(
        together, images_of(loader(index, [range(20)], transform=singly, **settings))
    )


@pytest.mark.parametrize(("num_samples", "num_ranks"), [(45, 1), (45, 2), (45, 7), (16, 3), (3, 2)])
def test_evaluation_has_every_sample_once(
    make_numbered: MakeNumbered, num_ranks: int, num_samples: int
) -> None:
    index = make_numbered(num_samples)
    seen: list[int] = []
    for rank in range(num_ranks):
        batches = evaluation(index, rank=rank, num_ranks=num_ranks)
        blocks = [numbers(images) for images, _ in batches]
        others = evaluation(index, rank=num_ranks - 1, num_ranks=num_ranks)
        assert len(batches) == others.num_blocks_of(rank) == len(blocks)
        for block in blocks:
            assert block[0] // BATCH_SIZE % num_ranks == rank
            assert block == list(range(block[0], min(block[0] + BATCH_SIZE, num_samples)))
            assert block[0] % BATCH_SIZE == 0
        seen += [number for block in blocks for number in block]
    assert sorted(seen) == list(range(num_samples))


def test_evaluation_of_some_samples_is_of_these(make_numbered: MakeNumbered) -> None:
    index, some = make_numbered(45), np.array([40, 3, 3, 17, 1, 8, 44, 2, 0, 30])
    blocks = [evaluation(index, rank=rank, num_ranks=2, sample_ids=some) for rank in range(2)]
    assert [numbers(images_of(each)) for each in blocks] == [some[:8].tolist(), some[8:].tolist()]


def report_threads(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    is_worker = multiprocessing.parent_process() is not None
    number = np.full((2, 2, 1), torch.get_num_threads() + 100 * is_worker, np.uint8)
    number[0] = image[0]
    return number


def test_evaluation_with_workers_is_the_same_each_time(make_numbered: MakeNumbered) -> None:
    threads = dataclasses.replace(NONE, prepare=report_threads)
    torch.set_num_threads(2)
    try:
        batches = evaluation(make_numbered(45), num_workers=2, transform=threads)
        for _ in range(2):
            images = images_of(batches)
            assert numbers(images) == list(range(45))
            # Workers use one thread each.
            assert set(images[:, 1].unique().tolist()) == {101}
    finally:
        torch.set_num_threads(1)


def cut_odd_ones(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image[: 1 + image[0, 0, 0] % 2]


def test_what_cannot_be_evaluated_is_named(make_numbered: MakeNumbered) -> None:
    index = make_numbered(10)
    cut: TransformPreset = dataclasses.replace(NONE, name="cut", prepare=cut_odd_ones)
    with pytest.raises(UserError, match=r"'sample1' has the shape \(2, 2, 1\) after the transform"):
        list(evaluation(index, transform=cut))
    with pytest.raises(UserError, match=r"rank: 2 is not in 0 … 1"):
        evaluation(index, rank=2, num_ranks=2)
    with pytest.raises(UserError, match="max_host_bytes: 100 is too little"):
        list(evaluation(index, max_host_bytes=100))
