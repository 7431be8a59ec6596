"""The evaluation loader: every sample exactly once on any number of ranks."""

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_pipelines import (
    EvaluationLoader,
    SampleIndex,
    TransformPreset,
    UserError,
    transform_preset,
)

MakeNumbered = Callable[..., SampleIndex]
NONE = transform_preset("none")
BATCH_SIZE = 8


def report_threads(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    is_worker = multiprocessing.parent_process() is not None
    return np.full((1, 1, 1), torch.get_num_threads() + 100 * is_worker, np.uint8)


def cut_odd_ones(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image[: 1 + image[0, 0, 0] % 2]


def evaluation(
    index: SampleIndex,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    num_workers: int = 0,
    transform: TransformPreset = NONE,
) -> EvaluationLoader:
    return EvaluationLoader(
        index,
        batch_size=BATCH_SIZE,
        rank=rank,
        num_ranks=num_ranks,
        transform=transform,
        num_workers=num_workers,
    )


def blocks_of(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> list[list[int]]:
    return [(images[:, 0, 0, 0].int() + 256 * images[:, 0, 1, 0]).tolist() for images, _ in batches]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("num_samples", [45, 16, 3])
def test_evaluation_has_every_sample_once(
    make_numbered: MakeNumbered, num_ranks: int, num_samples: int
) -> None:
    index = make_numbered(num_samples)
    seen: list[int] = []
    for rank in range(num_ranks):
        batches = evaluation(index, rank=rank, num_ranks=num_ranks)
        blocks = blocks_of(batches)
        assert len(batches) == len(blocks)
        for block in blocks:
            assert block[0] % BATCH_SIZE == 0
            assert block[0] // BATCH_SIZE % num_ranks == rank
            assert block == list(range(block[0], min(block[0] + BATCH_SIZE, num_samples)))
        seen += [number for block in blocks for number in block]
    assert sorted(seen) == list(range(num_samples))


def test_evaluation_with_workers_is_the_same_each_time(make_numbered: MakeNumbered) -> None:
    index = make_numbered(45)
    batches = evaluation(index, num_workers=2)
    expected = blocks_of(evaluation(index))
    assert blocks_of(batches) == blocks_of(batches) == expected


def test_workers_use_one_thread_each(make_numbered: MakeNumbered) -> None:
    torch.set_num_threads(2)
    try:
        threads = dataclasses.replace(NONE, prepare=report_threads)
        batches = evaluation(make_numbered(16), num_workers=2, transform=threads)
        assert {int(value) for images, _ in batches for value in images.ravel()} == {101}
    finally:
        torch.set_num_threads(1)


def test_images_of_several_sizes_are_refused(make_numbered: MakeNumbered) -> None:
    cut = dataclasses.replace(NONE, name="cut", prepare=cut_odd_ones)
    with pytest.raises(UserError, match=r"'sample1' has the shape \(2, 2, 1\) after the transform"):
        list(evaluation(make_numbered(10), transform=cut))


def test_rank_out_of_range_is_named(make_numbered: MakeNumbered) -> None:
    with pytest.raises(UserError, match=r"rank: 2 is not in 0 … 1"):
        evaluation(make_numbered(10), rank=2, num_ranks=2)
