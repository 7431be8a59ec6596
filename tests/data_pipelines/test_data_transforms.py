"""Transform presets and normalisation."""

import dataclasses

import numpy as np
import pytest
import torch

from data_pipelines import UserError, normalise, transform_preset
from data_pipelines.order import augmentation_rng

COLOUR = dataclasses.replace(
    transform_preset("none"), name="colour", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def some_images(num_channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, 4, 6, num_channels), dtype=torch.uint8, generator=generator)


def test_none_changes_nothing() -> None:
    preset = transform_preset("none")
    image = some_images(3)[0].numpy()
    assert np.array_equal(preset.augment(image, augmentation_rng(0, 0, 0)), image)
    assert np.array_equal(preset.prepare(image), image)
    images = some_images(1)
    result = normalise(images, preset=preset, dtype=torch.float32)
    assert torch.equal(result, images.float().permute(0, 3, 1, 2) / 255)


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown transform 'non': did you mean 'none'\? There is"):
        transform_preset("non")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_normalise_rounds_once(dtype: torch.dtype) -> None:
    images = some_images(3)
    result = normalise(images, preset=COLOUR, dtype=dtype)
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (COLOUR.mean, COLOUR.std))
    exact = ((images.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    assert result.dtype == dtype
    assert result.shape == (5, 3, 4, 6)
    assert result.is_contiguous(memory_format=torch.channels_last)
    # Half a unit in the last place of each type, and of float32's intermediate steps.
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance / 8)


def test_normalise_leaves_its_input_alone() -> None:
    images = some_images(3)
    before = images.clone()
    normalise(images, preset=COLOUR, dtype=torch.float32)
    assert torch.equal(images, before)


def test_statistics_for_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"'colour' has the mean of 3 channels.*the images have 1"):
        normalise(some_images(1), preset=COLOUR, dtype=torch.float32)
