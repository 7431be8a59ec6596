"""Transform presets and normalisation."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from data_pipelines import UserError, normalise, transform_preset
from data_pipelines.order import augmentation_rng
from data_pipelines.transforms import STATISTICS, TRANSFORMS, identity
from data_pipelines.transforms.presets import Image

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


def test_streams_are_made_only_for_what_draws_from_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[int, ...]] = []

    def counted(*key: int) -> np.random.Generator:
        made.append(key)
        return augmentation_rng(*key)

    monkeypatch.setattr(identity, "augmentation_rng", counted)
    image = some_images(3)[0].numpy()
    key = {"seed": 1, "epoch": 2, "sample_id": 3}
    for name in ("none", "crop875_bicubic:size=5"):
        preset = transform_preset(name)
        result = identity.augmented(preset.augment, image, **key)
        assert np.array_equal(result, preset.prepare(image))
    assert not made
    augment = transform_preset("inception_vit:size=5").augment
    result = identity.augmented(augment, image, **key)
    assert np.array_equal(result, augment(image, augmentation_rng(1, 2, 3)))
    assert made == [(1, 2, 3)]


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


def test_normalise_is_the_same_in_any_mode() -> None:
    images = some_images(3)
    with torch.inference_mode():
        first = normalise(images, preset=COLOUR, dtype=torch.float64)
    weight = torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True)
    again = normalise(images, preset=COLOUR, dtype=torch.float64)
    (again * weight).sum().backward()
    assert torch.equal(first, again)


def photograph() -> Image:
    image: Image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    image.flags.writeable = False
    return image


@pytest.mark.parametrize("name", TRANSFORMS)
def test_presets_are_functions_of_image_and_stream(name: str) -> None:
    preset = transform_preset(name)
    sent = pickle.loads(pickle.dumps(preset))
    image = photograph()
    before = image.copy()
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    for seed in range(5):
        result = preset.augment(image, augmentation_rng(0, 0, seed))
        assert np.array_equal(sent.augment(image, augmentation_rng(0, 0, seed)), result)
        assert result.dtype == np.uint8
        assert result.shape == (*(preset.size or image.shape[:2]), 3)
    prepared = preset.prepare(image)
    assert np.array_equal(sent.prepare(image), prepared)
    assert prepared.shape == result.shape
    # Nothing is drawn from, and nothing is written to, what belongs to others.
    assert np.array_equal(image, before)
    assert np.array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])


@pytest.mark.parametrize(
    ("name", "evaluation", "statistics"),
    [
        ("inception_vit", "resize256_crop224_area", "inception"),
        ("inception_tv", "resize256_crop224_bilinear", "imagenet"),
        ("inception_sam", "crop875_bicubic", "imagenet"),
        ("inception_vit:evaluation=timm_0.9_bicubic", "timm_0.9_bicubic", "inception"),
        ("inception_vit:statistics=imagenet", "resize256_crop224_area", "imagenet"),
        ("inception_tv:size=96,statistics=none", "resize256_crop224_bilinear:size=96", "none"),
        ("inception_sam : size = 48", "crop875_bicubic:size=48", "imagenet"),
        ("cifar_basic", "none", "cifar10"),
        ("cifar_zero:statistics=cifar100", "none", "cifar100"),
        ("none:statistics=imagenet", "none", "imagenet"),
    ],
)
def test_training_goes_with_an_evaluation(name: str, evaluation: str, statistics: str) -> None:
    preset, alone = transform_preset(name), transform_preset(evaluation)
    assert preset.name == name
    assert (preset.mean, preset.std) == STATISTICS[statistics]
    assert preset.size == alone.size
    image = photograph()
    assert np.array_equal(preset.prepare(image), alone.prepare(image))
    # An evaluation transform does the same in training.
    assert np.array_equal(alone.augment(image, augmentation_rng(0, 0, 0)), alone.prepare(image))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inception_vt", "unknown transform 'inception_vt': did you mean 'inception_vit'"),
        ("inception_vit:", "inception_vit:: '' is not a parameter; written as in"),
        ("inception_vit:size", "'size' is not a parameter"),
        ("inception_vit:size=", "'size=' is not a parameter"),
        ("inception_vit:size=96,size=64", "'size=64' is not a parameter; .* each once"),
        ("inception_vit:size=0", r"size 0 is not in 1 … 4096"),
        ("inception_vit:size=1e3", r"size 1e3 is not in"),
        ("inception_vit:size=99999999999", r"size 99999999999 is not in"),
        ("inception_vit:depth=3", "has no parameter depth, only evaluation, size, statistics"),
        ("crop875_bicubic:evaluation=none", "has no parameter evaluation, only size, statistics"),
        ("cifar_basic:size=32", "cifar_basic has no parameter size, only cutout, statistics"),
        ("inception_tv:statistics=imgnet", "statistics 'imgnet': did you mean 'imagenet'"),
        ("inception_tv:evaluation=crop", "evaluation 'crop': .*There is: crop875_bicubic"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        transform_preset(name)
