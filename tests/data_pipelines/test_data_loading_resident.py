"""Small images that are read once: the same batches as streamed ones, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shards import make_photos

from data_pipelines import (
    EvaluationLoader,
    MicroBatchLoader,
    PreparedDataset,
    SampleIndex,
    UserError,
    transform_preset,
)

MakeNumbered = Callable[..., SampleIndex]


def batches_of(index: SampleIndex, transform: str, **changes: Any) -> list[torch.Tensor]:
    settings: dict[str, Any] = {"num_workers": 0, **changes}
    batches = MicroBatchLoader(
        index,
        order="global",
        seed=5,
        batch_size=100,
        positions=[range(60), range(60, 100)],
        transform=transform_preset(transform),
        first_step=0,
        num_steps=16,
        **settings,
    )
    return [tensor.clone() for batch in batches for tensor in batch]


@pytest.mark.parametrize("transform", ["none", "cifar_basic", "cifar_zero"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resident_samples_give_the_same_batches(
    digits: PreparedDataset, transform: str, num_workers: int
) -> None:
    index = SampleIndex.open(digits.splits["train"])
    streamed = batches_of(index, transform)
    resident = batches_of(index, transform, resident=True, num_workers=num_workers)
    assert all(torch.equal(a, b) for a, b in zip(streamed, resident, strict=True))


def test_shards_are_not_read_again(make_numbered: MakeNumbered, tmp_path: Path) -> None:
    index = make_numbered(40)
    batches = MicroBatchLoader(
        index,
        order="global",
        seed=0,
        batch_size=8,
        positions=[range(8)],
        transform=transform_preset("none"),
        num_workers=0,
        first_step=0,
        num_steps=10,
        resident=True,
    )
    iterator = iter(batches)
    next(iterator)
    for shard in index.directory.glob("*.tar"):
        shard.write_bytes(b"")
    assert len(list(iterator)) == 9


def test_evaluation_can_be_resident(make_numbered: MakeNumbered) -> None:
    def blocks(resident: bool) -> list[torch.Tensor]:
        batches = EvaluationLoader(
            make_numbered(45, name=str(resident)),
            batch_size=10,
            rank=0,
            num_ranks=2,
            transform=transform_preset("none"),
            num_workers=0,
            resident=resident,
        )
        return [images.clone() for images, _ in batches]

    assert all(torch.equal(a, b) for a, b in zip(blocks(True), blocks(False), strict=True))


def test_more_than_the_limit_is_refused(digits: PreparedDataset) -> None:
    index = SampleIndex.open(digits.splits["train"])
    with pytest.raises(UserError, match=r"resident: .* take 91968 bytes, more than .*\(90000\)"):
        batches_of(index, "none", resident=True, max_host_bytes=90_000)


def test_images_augmented_together_are_those_augmented_one_by_one(tmp_path: Path) -> None:
    """With another way of asking for the same: `augment` of a preset without `augment_batch`."""
    import dataclasses

    index = make_photos(tmp_path / "photos", 100)
    preset = transform_preset("cifar_basic")
    assert preset.augment_batch is not None
    singly = dataclasses.replace(preset, augment_batch=None)

    def images(transform: Any) -> torch.Tensor:
        batches = MicroBatchLoader(
            index,
            order="global",
            seed=0,
            batch_size=20,
            positions=[range(20)],
            transform=transform,
            num_workers=0,
            first_step=0,
            num_steps=5,
        )
        return torch.cat([images for images, _ in batches])

    assert torch.equal(images(preset), images(singly))
