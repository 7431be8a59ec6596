"""The training loader: one order on any number of ranks and workers."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_pipelines import (
    MicroBatchLoader,
    SampleIndex,
    TransformPreset,
    UserError,
    transform_preset,
)

MakeNumbered = Callable[..., SampleIndex]
NONE = transform_preset("none")
BATCH_SIZE = 8


def add_noise(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    # In the two high bytes, so that the number in the low ones stays readable.
    image = image.copy()
    image[1] = rng.integers(0, 256, size=image[1].shape, dtype=np.uint8)
    return image


NOISY = TransformPreset(name="noisy", augment=add_noise, prepare=NONE.prepare, mean=None, std=None)


def loader(
    index: SampleIndex,
    positions: Sequence[Sequence[int]],
    *,
    num_workers: int = 0,
    first_step: int = 0,
    num_steps: int = 12,
    batch_size: int = BATCH_SIZE,
    seed: int = 5,
) -> MicroBatchLoader:
    return MicroBatchLoader(
        index,
        order="global",
        seed=seed,
        batch_size=batch_size,
        positions=positions,
        transform=NOISY,
        num_workers=num_workers,
        first_step=first_step,
        num_steps=num_steps,
    )


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].int() + 256 * images[:, 0, 1, 0].int()).tolist()


def plan(num_ranks: int, num_items: int) -> list[list[list[int]]]:
    """Deals the places of a mini-batch out to ranks and, within a rank, to items."""
    per_item = BATCH_SIZE // num_ranks // num_items
    places = iter(range(BATCH_SIZE))
    return [
        [[next(places) for _ in range(per_item)] for _ in range(num_items)]
        for _ in range(num_ranks)
    ]


def trace(index: SampleIndex, ranks: Sequence[Sequence[Sequence[int]]], **settings: int) -> str:
    """Hashes every pixel and label of every mini-batch, put together from what the ranks load."""
    digest = hashlib.sha256()
    iterators = [iter(loader(index, positions, **settings)) for positions in ranks]
    for _ in range(settings.get("num_steps", 12)):
        images = torch.zeros(BATCH_SIZE, 2, 2, 1, dtype=torch.uint8)
        labels = torch.zeros(BATCH_SIZE, dtype=torch.int64)
        for positions, batches in zip(ranks, iterators, strict=True):
            for item in positions:
                images[list(item)], labels[list(item)] = next(batches)
        assert labels.tolist() == [number % 7 for number in numbers(images)]
        digest.update(images.numpy().tobytes())
    assert all(next(batches, None) is None for batches in iterators)
    return digest.hexdigest()


def test_order_and_augmentation_do_not_depend_on_the_layout(make_numbered: MakeNumbered) -> None:
    index = make_numbered(51)
    expected = trace(index, plan(1, 1))
    for num_ranks in (1, 2, 4):
        for num_workers in (0, 2):
            for num_items in (1, 2):
                ranks = plan(num_ranks, num_items)
                assert trace(index, ranks, num_workers=num_workers) == expected
    interleaved = [[[0, 2, 4, 6]], [[7, 5], [3, 1]]]
    assert trace(index, interleaved) == expected
    # The trace does see order and augmentation: another seed and swapped places change it.
    assert trace(index, plan(1, 1), seed=6) != expected
    reordered = loader(index, [[1, 0, *range(2, 8)]])
    straight = loader(index, [list(range(8))])
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(reordered, straight, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_run_continues_the_uninterrupted_one(
    make_numbered: MakeNumbered, num_workers: int
) -> None:
    index = make_numbered(51)
    whole = list(loader(index, [[0, 1, 2, 3], [4, 5, 6, 7]], num_steps=15))
    for first_step in (1, 5, 6, 14):
        resumed = loader(
            index,
            [list(range(8))],
            first_step=first_step,
            num_steps=15 - first_step,
            num_workers=num_workers,
        )
        tail = whole[2 * first_step :]
        assert torch.equal(
            torch.cat([images for images, _ in resumed]), torch.cat([images for images, _ in tail])
        )


def test_an_epoch_has_every_sample_once_and_the_next_another_order(
    make_numbered: MakeNumbered,
) -> None:
    batches = loader(make_numbered(48), [list(range(8))], num_steps=18)
    assert batches.steps_per_epoch == 6
    seen = [number for images, _ in batches for number in numbers(images)]
    epochs = [seen[48 * epoch : 48 * (epoch + 1)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(48))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_left_over_samples_are_others_each_epoch(make_numbered: MakeNumbered) -> None:
    batches = loader(make_numbered(15), [list(range(8))], num_steps=20)
    assert batches.steps_per_epoch == 1
    left_over = {frozenset(range(15)) - set(numbers(images)) for images, _ in batches}
    assert all(len(each) == 7 for each in left_over)
    assert len(left_over) > 15


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterating_again_starts_again_even_after_a_break(
    make_numbered: MakeNumbered, num_workers: int
) -> None:
    batches = loader(make_numbered(51), [list(range(8))], num_workers=num_workers)
    first = [images for images, _ in batches]
    assert len(first) == len(batches) == 12
    for step, (images, _) in enumerate(batches):
        assert torch.equal(images, first[step])
        if step == 3:
            break
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.cat(first))


def test_shapes_and_types(make_numbered: MakeNumbered) -> None:
    images, labels = next(iter(loader(make_numbered(20), [[3, 0, 5]])))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (3, 2, 2, 1))
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (3,))


def test_loading_does_not_touch_the_global_random_streams(make_numbered: MakeNumbered) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert len(list(loader(make_numbered(20), [list(range(8))], num_workers=1))) == 12
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_reaches_the_user_as_one_clear_line(
    make_numbered: MakeNumbered, num_workers: int
) -> None:
    index = make_numbered(30)
    with index.shard_path(1).open("r+b") as file:
        file.seek(int(index.samples[13]["npy.offset"]))
        file.write(b"\0")
    message = ""
    try:
        list(loader(index, [list(range(8))], num_workers=num_workers))
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
        ({"batch_size": 4}, r"positions: \[0, 1, 2, 3, 4\] are not different places in 0 … 3"),
    ],
)
def test_impossible_settings_are_named(
    make_numbered: MakeNumbered, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        loader(make_numbered(30), [[0, 1, 2, 3, 4]], **settings)


def test_unknown_order_is_named(make_numbered: MakeNumbered) -> None:
    with pytest.raises(UserError, match=r"unknown order 'globl': did you mean 'global'\?"):
        MicroBatchLoader(
            make_numbered(10),
            order="globl",
            seed=0,
            batch_size=2,
            positions=[[0, 1]],
            transform=NONE,
            num_workers=0,
            first_step=0,
            num_steps=1,
        )
