"""Mixed samples: partners come along, whichever rank they are trained on."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from data_pipelines import MicroBatchLoader, SampleIndex, UserError, transform_preset
from data_pipelines.loading import MixedBatch, SampleMixing
from data_pipelines.transforms import cutmix_draws, mixup_draws

MakeNumbered = Callable[..., SampleIndex]
BATCH_SIZE, MICRO_BATCHES = 12, 2
MIXUP = SampleMixing(mixup_alpha=0.4)


def make_loader(
    index: SampleIndex, positions: Sequence[Sequence[int]], **changes: Any
) -> MicroBatchLoader:
    settings: dict[str, Any] = {
        "order": "global",
        "seed": 5,
        "batch_size": BATCH_SIZE,
        "micro_batches": MICRO_BATCHES,
        "transform": transform_preset("none"),
        "num_workers": 0,
        "first_step": 0,
        "num_steps": 10,
        "mixing": MIXUP,
        **changes,
    }
    return MicroBatchLoader(index, positions=positions, **settings)


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].int() + 256 * images[:, 0, 1, 0].int()).tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_sample_has_its_partner_in_the_micro_batch(
    make_numbered: MakeNumbered, num_workers: int
) -> None:
    index = make_numbered(51)
    mixed = iter(make_loader(index, [range(6), range(6, 12)], num_workers=num_workers))
    plain = iter(make_loader(index, [range(6), range(6, 12)], mixing=None))
    for step in range(10):
        for micro_batch in range(MICRO_BATCHES):
            batch, (images, labels) = next(mixed), next(plain)
            assert isinstance(batch, MixedBatch)
            assert torch.equal(batch.images, images)
            assert torch.equal(batch.labels, labels)
            draw = mixup_draws(5, step // 4, step, micro_batch, num_samples=6, alpha=0.4)
            assert torch.equal(batch.partner_images, images[draw.partners])
            assert torch.equal(batch.partner_labels, labels[draw.partners])
            assert batch.weights.tolist() == pytest.approx([draw.weight] * 6)
            assert batch.boxes.tolist() == [[0, 0, 0, 0]] * 6


@pytest.mark.layouts
def test_mixing_does_not_depend_on_the_layout(make_numbered: MakeNumbered) -> None:
    index = make_numbered(51)
    whole = make_loader(index, [range(6), range(6, 12)])
    parts = make_loader(index, [[0, 1], [2, 3, 4, 5], [6], [7, 8, 9, 10, 11]], num_workers=1)
    pieces = iter(parts)
    num_foreign = 0
    for batch in whole:
        first, second = next(pieces), next(pieces)
        for expected, one, other in zip(batch, first, second, strict=True):
            assert torch.equal(expected, torch.cat([one, other]))
        num_foreign += len(set(numbers(first.partner_images)) - set(numbers(first.images)))
    assert num_foreign > 10, "partners outside of the own part were needed"


def test_cutmix_and_the_choice_between_both(make_numbered: MakeNumbered) -> None:
    both = make_loader(
        make_numbered(51),
        [range(6), range(6, 12)],
        mixing=SampleMixing(mixup_alpha=0.4, cutmix_alpha=1.0),
        num_steps=40,
    )
    kinds = []
    for number, batch in enumerate(both):
        step, micro_batch = divmod(number, MICRO_BATCHES)
        place = (5, step // 4, step, micro_batch)
        cut = cutmix_draws(*place, num_samples=6, alpha=1.0, height=2, width=2)
        assert cut.box is not None
        mixed = mixup_draws(*place, num_samples=6, alpha=0.4)
        weight = pytest.approx(float(batch.weights[0]))
        is_mixup = batch.boxes[0].tolist() == [0, 0, 0, 0] and mixed.weight == weight
        assert is_mixup or (batch.boxes[0].tolist() == list(cut.box) and cut.weight == weight)
        kinds.append(is_mixup)
    assert 20 < sum(kinds) < 60
    # Each micro-batch draws for itself.
    assert 8 < sum(one != other for one, other in zip(kinds[::2], kinds[1::2], strict=True)) < 32


def test_mixing_that_is_none_is_refused() -> None:
    for settings, message in (
        ({}, r"mixing: neither mixup nor cutmix"),
        ({"mixup_alpha": 0.0}, r"mixing: mixup_alpha 0.0 is not positive"),
        ({"cutmix_alpha": -1.0}, r"mixing: cutmix_alpha -1.0 is not positive"),
    ):
        with pytest.raises(UserError, match=message):
            SampleMixing(**settings)
