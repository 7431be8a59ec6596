"""Mixup, cutmix and label smoothing: their distributions, and the same on any number of ranks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta, kstest
from timm.data.mixup import mixup_target

from data_pipelines import UserError
from data_pipelines.transforms import (
    MixingDraw,
    cutmix_draws,
    mix_images,
    mixup_draws,
    soft_targets,
)


def mixup(step: int = 5, *, alpha: float = 0.4) -> MixingDraw:
    return mixup_draws(1, 2, step, 4, num_samples=12, alpha=alpha)


def cutmix(step: int = 5, *, alpha: float = 1.0) -> MixingDraw:
    return cutmix_draws(1, 2, step, 4, num_samples=12, alpha=alpha, height=32, width=48)


@pytest.mark.parametrize("draw", [mixup, cutmix])
def test_draws_are_functions_of_their_place_alone(draw: Callable[[int], MixingDraw]) -> None:
    first, again = draw(5), draw(5)
    assert (first.weight, first.box) == (again.weight, again.box)
    assert np.array_equal(first.partners, again.partners)
    assert first.weight != draw(6).weight
    places = [(1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5)]
    draws = [mixup_draws(*place, num_samples=50, alpha=1.0) for place in places]
    assert len({draw.weight for draw in draws}) == len(places)
    assert len({tuple(draw.partners.tolist()) for draw in draws}) == len(places)


def test_partners_are_the_micro_batch_in_another_order() -> None:
    seen = np.zeros((12, 12), int)
    for step in range(300):
        partners = mixup(step).partners
        assert sorted(partners.tolist()) == list(range(12))
        seen[np.arange(12), partners] += 1
    # 25 expected of each pair; five standard deviations.
    assert np.abs(seen - 25).max() < 25


@pytest.mark.part("data")
@pytest.mark.parametrize("alpha", [0.2, 8.0])
def test_weights_are_beta_distributed(alpha: float) -> None:
    weights = [mixup(step, alpha=alpha).weight for step in range(1000)]
    assert kstest(weights, beta(alpha, alpha).cdf).pvalue > 1e-3
    assert kstest(weights, beta(2 * alpha, alpha).cdf).pvalue < 1e-6
    assert all(weight * 2**24 == round(weight * 2**24) for weight in weights)


def test_boxes_have_the_area_of_their_weight() -> None:
    areas, centres = [], []
    for step in range(400):
        draw = cutmix(step)
        assert draw.box is not None
        assert 0 <= draw.box.top <= draw.box.bottom <= 32
        assert 0 <= draw.box.left <= draw.box.right <= 48
        area = (draw.box.bottom - draw.box.top) * (draw.box.right - draw.box.left)
        assert draw.weight == 1 - area / (32 * 48)
        areas.append(area)
        if draw.box.left > 0 and draw.box.right < 48 and area:
            centres.append((draw.box.left + draw.box.right) / 2)
    # A box of side s (of 1) whose centre is anywhere keeps s - s² / 4 of it in each direction on
    # average; alpha = 1 makes s² uniform.
    sides = np.sqrt(np.linspace(0, 1, 100001))
    expected = 32 * 48 * ((sides - sides**2 / 4) ** 2).mean()
    assert np.mean(areas) == pytest.approx(expected, rel=0.15)
    assert np.mean(centres) == pytest.approx(24, abs=2.5)


def tensors_of(draws: list[MixingDraw]) -> dict[str, torch.Tensor]:
    boxes = [(0, 0, 0, 0) if draw.box is None else draw.box for draw in draws]
    return {
        "weights": torch.tensor([draw.weight for draw in draws]),
        "boxes": torch.tensor(boxes, dtype=torch.int64),
    }


def test_images_are_mixed_with_their_partners() -> None:
    generator = torch.Generator().manual_seed(0)
    images, partners = torch.randn(2, 12, 3, 32, 48, generator=generator).unbind()
    images = images.contiguous(memory_format=torch.channels_last)
    partners = partners.contiguous(memory_format=torch.channels_last)
    before = images.clone(), partners.clone()
    draws = [mixup(step) if step % 2 else cutmix(step) for step in range(12)]
    mixed = mix_images(images, partners=partners, **tensors_of(draws))
    assert torch.equal(images, before[0])
    assert torch.equal(partners, before[1])
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    for place, draw in enumerate(draws):
        if draw.box is None:
            expected = draw.weight * images[place] + (1 - draw.weight) * partners[place]
            torch.testing.assert_close(mixed[place], expected, rtol=1e-6, atol=1e-6)
            continue
        expected = images[place].clone()
        rows, columns = slice(draw.box.top, draw.box.bottom), slice(draw.box.left, draw.box.right)
        expected[:, rows, columns] = partners[place][:, rows, columns]
        assert torch.equal(mixed[place], expected)
        taken = (mixed[place, 0] == partners[place, 0]).double().mean()
        assert taken == pytest.approx(1 - draw.weight)


def test_parts_of_a_micro_batch_are_mixed_as_the_whole() -> None:
    images = torch.randn(12, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    for draw in (mixup(), cutmix()):
        partners, tensors = torch.from_numpy(draw.partners), tensors_of([draw] * 12)
        whole = mix_images(images, partners=images[partners], **tensors)
        parts = [
            mix_images(
                images[part],
                partners=images[partners[part]],
                **{name: tensor[part] for name, tensor in tensors.items()},
            )
            for part in (slice(0, 5), slice(5, 12))
        ]
        assert torch.equal(torch.cat(parts), whole)
        assert not torch.allclose(whole, images, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_of_zero_or_one_keeps_an_image_as_it_is(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images, partners = torch.randn(2, 2, 3, 5, 5, generator=generator).to(dtype)
    weights, boxes = torch.tensor([1.0, 0.0]), torch.zeros(2, 4, dtype=torch.int64)
    mixed = mix_images(images, partners=partners, weights=weights, boxes=boxes)
    assert mixed.dtype == dtype
    assert torch.equal(mixed, torch.stack([images[0], partners[1]]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_those_of_torch_and_timm(smoothing: float) -> None:
    labels = torch.tensor([3, 0, 6, 6, 1])
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smoothed = soft_targets(labels, num_classes=7, smoothing=smoothing)
    torch.testing.assert_close(
        F.cross_entropy(logits, smoothed.double()),
        F.cross_entropy(logits, labels, label_smoothing=smoothing),
        rtol=1e-6,
        atol=0,
    )
    # timm's partner is the batch in reverse.
    mixed = soft_targets(
        labels,
        num_classes=7,
        smoothing=smoothing,
        partner_labels=labels.flip(0),
        weights=torch.full((5,), 0.3),
    )
    torch.testing.assert_close(mixed, mixup_target(labels, 7, lam=0.3, smoothing=smoothing))
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(5))


def test_settings_out_of_range_are_refused() -> None:
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"mixup: alpha .* is not positive"):
            mixup(alpha=alpha)
        with pytest.raises(UserError, match=r"cutmix: alpha .* is not positive"):
            cutmix(alpha=alpha)
    with pytest.raises(UserError, match=r"label smoothing: 1\.0 is not in \[0, 1\)"):
        soft_targets(torch.tensor([0]), num_classes=2, smoothing=1.0)
    with pytest.raises(UserError, match="seed: -3 is not in"):
        mixup_draws(-3, 0, 0, 0, num_samples=2, alpha=1.0)
