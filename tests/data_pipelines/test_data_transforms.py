"""Transform presets, alone and a batch at a time, cutout, and normalisation."""

import dataclasses
import pickle

import numpy as np
import pytest
import timm.data
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare

from data_pipelines import (
    STATISTICS,
    TransformPreset,
    UserError,
    augmentation_rng,
    normalise,
    transform_preset,
)
from data_pipelines.transforms import (
    TRANSFORMS,
    BatchAugmentation,
    augmentation_words,
    identity,
)
from data_pipelines.transforms.presets import Image
from data_pipelines.transforms.random_words import below, below_array, raw_words, uniform

COLOUR = dataclasses.replace(
    transform_preset("none"), name="colour", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def some_images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def batch_of(preset: TransformPreset) -> BatchAugmentation:
    assert preset.augment_batch is not None
    return preset.augment_batch


def some_tensors(num_channels: int) -> torch.Tensor:
    return torch.from_numpy(some_images(5, 4, 6, num_channels))


def test_none_changes_nothing() -> None:
    preset = transform_preset("none")
    image = some_images(4, 6, 3)
    assert np.array_equal(preset.augment(image, augmentation_rng(0, 0, 0)), image)
    assert np.array_equal(preset.prepare(image), image)
    images = some_tensors(1)
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
    image = some_images(4, 6, 3)
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


def test_statistics_are_the_published_ones() -> None:
    data = timm.data
    assert STATISTICS["imagenet"] == (data.IMAGENET_DEFAULT_MEAN, data.IMAGENET_DEFAULT_STD)
    assert STATISTICS["inception"] == (data.IMAGENET_INCEPTION_MEAN, data.IMAGENET_INCEPTION_STD)
    # Of CIFAR in three digits, as they are quoted everywhere.
    for name, mean, std in (
        ("cifar10", (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
        ("cifar100", (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    ):
        assert STATISTICS[name].mean == pytest.approx(mean, abs=5.1e-4)
        assert STATISTICS[name].std == pytest.approx(std, abs=5.1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_normalise_rounds_once(dtype: torch.dtype) -> None:
    images = some_tensors(3)
    before = images.clone()
    result = normalise(images, preset=COLOUR, dtype=dtype)
    assert torch.equal(images, before)
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (COLOUR.mean, COLOUR.std))
    exact = ((images.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    assert result.dtype == dtype
    assert result.shape == (5, 3, 4, 6)
    assert result.is_contiguous(memory_format=torch.channels_last)
    # Half a unit in the last place of each type, and of float32's intermediate steps.
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance / 8)


def test_statistics_for_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"'colour' has the mean of 3 channels.*the images have 1"):
        normalise(some_tensors(1), preset=COLOUR, dtype=torch.float32)


def test_normalise_is_the_same_in_any_mode() -> None:
    images = some_tensors(3)
    with torch.inference_mode():
        first = normalise(images, preset=COLOUR, dtype=torch.float64)
    weight = torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True)
    again = normalise(images, preset=COLOUR, dtype=torch.float64)
    (again * weight).sum().backward()
    assert torch.equal(first, again)


def photograph() -> Image:
    image: Image = some_images(60, 80, 3)
    image.flags.writeable = False
    return image


@pytest.mark.parametrize("name", TRANSFORMS)
def test_presets_are_functions_of_image_and_stream(name: str) -> None:
    preset = transform_preset(name)
    sent = pickle.loads(pickle.dumps(preset))
    image = photograph()
    before = image.copy()
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    for seed in range(3):
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


def test_what_no_transform_is_is_refused() -> None:
    for name, message in (
        ("non", r"unknown transform 'non': did you mean 'none'\? There is"),
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
        ("inception_tv:statistics=imgnet", "statistics 'imgnet': did you mean 'imagenet'"),
        ("inception_tv:evaluation=crop", "evaluation 'crop': .*There is: crop875_bicubic"),
        ("cifar_basic:cutout=15", "cutout 15 is odd"),
        ("cifar_basic:cutout=0", "cutout 0 is not in 2"),
        ("cifar_basic:cutout=big", "cutout big is not in 2"),
        ("none:cutout=16", "none has no parameter cutout, only statistics"),
        ("inception_vit:cutout=16", "inception_vit has no parameter cutout, only evaluation"),
        ("cifar_zero:cut=16", "cifar_zero has no parameter cut, only cutout, statistics"),
    ):
        with pytest.raises(UserError, match=message):
            transform_preset(name)
    with pytest.raises(UserError, match="seed: -1 is not in"):
        augmentation_words(-1, epochs=0, sample_ids=np.arange(3), num_words=1)
    stream = augmentation_rng(0, 0, 0)
    with pytest.raises(UserError, match=r"cutout: the images have 1 channels, but their mean"):
        transform_preset("cifar_zero:cutout=4").augment(some_images(8, 8, 1), stream)
    small = some_images(4, 8, 3)
    with pytest.raises(UserError, match="cifar_basic: images of 4 x 8 pixels cannot be padded by"):
        transform_preset("cifar_basic").augment(small, stream)
    assert transform_preset("cifar_zero").augment(small, stream).shape == (4, 8, 3)


def shifted_by_definition(
    image: NDArray[np.uint8], words: list[int], *, mode: str
) -> NDArray[np.uint8]:
    """Pads, cuts and mirrors one image with NumPy's own functions."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode=mode)
    flip, top, left = (
        (word >> 32) * bound >> 32 for word, bound in zip(words, (2, 9, 9), strict=True)
    )
    part = padded[top : top + image.shape[0], left : left + image.shape[1]]
    return np.fliplr(part) if flip else part


@pytest.mark.parametrize("num_words", [1, 4, 9])
def test_words_of_many_are_the_words_of_each(num_words: int) -> None:
    ids = np.array([0, 1, 7, 2**40, 1281166])
    epochs = np.array([0, 3, 3, 90, 2**33])
    found = augmentation_words(2**62 + 5, epochs=epochs, sample_ids=ids, num_words=num_words)
    expected = [
        augmentation_rng(2**62 + 5, epoch, sample_id).bit_generator.random_raw(num_words)
        for epoch, sample_id in zip(epochs.tolist(), ids.tolist(), strict=True)
    ]
    assert np.array_equal(found, expected)
    same = augmentation_words(3, epochs=5, sample_ids=ids, num_words=num_words)
    alone = augmentation_words(3, epochs=5, sample_ids=ids[3:4], num_words=num_words)
    assert np.array_equal(same[3:4], alone)


@pytest.mark.parametrize(("name", "mode"), [("cifar_basic", "reflect"), ("cifar_zero", "constant")])
@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (5, 9, 4)])
def test_batch_image_and_definition_agree(name: str, mode: str, shape: tuple[int, ...]) -> None:
    preset = transform_preset(name)
    images = some_images(40, *shape)
    images.flags.writeable = False
    ids = np.arange(1000, 1040)
    words = augmentation_words(4, epochs=2, sample_ids=ids, num_words=3)
    together = batch_of(preset).augment(images, words)
    assert together.shape == images.shape
    for place, sample_id in enumerate(ids.tolist()):
        alone = preset.augment(images[place], augmentation_rng(4, 2, sample_id))
        assert np.array_equal(together[place], alone)
        expected = shifted_by_definition(images[place], words[place].tolist(), mode=mode)
        assert np.array_equal(alone, expected)


def test_batches_that_are_not_contiguous_are_augmented() -> None:
    images = some_images(9, 32, 32, 3)
    words = augmentation_words(0, epochs=0, sample_ids=np.arange(9), num_words=3)
    batch = batch_of(transform_preset("cifar_basic"))
    expected = batch.augment(images, words)
    assert np.array_equal(batch.augment(np.asfortranarray(images), words), expected)
    assert np.array_equal(batch.augment(images[::-1], words[::-1]), expected[::-1])
    assert batch.augment(images[:0], words[:0]).shape == (0, 32, 32, 3)


def test_shifts_and_flips_are_equally_frequent() -> None:
    words = augmentation_words(0, epochs=0, sample_ids=np.arange(20000), num_words=3)
    # Every pixel has its place for a value, so the first pixel of the result tells the shift.
    rows, columns = np.mgrid[0:16, 0:16]
    image = np.stack([rows, columns, rows], axis=2).astype(np.uint8) + 1
    images = np.repeat(image[np.newaxis], len(words), axis=0)
    result = batch_of(transform_preset("cifar_zero")).augment(images, words)
    middle = result[:, 8, 8].astype(int)
    mirrored = result[:, 8, 9, 1] < result[:, 8, 8, 1]
    counts = np.zeros((2, 9, 9))
    shift = np.where(mirrored, middle[:, 1] - 4, middle[:, 1] - 5)
    np.add.at(counts, (mirrored.astype(int), middle[:, 0] - 5, shift), 1)
    assert counts.sum() == len(words)
    assert chisquare(counts.ravel()).pvalue > 1e-3


def test_numbers_from_words() -> None:
    highest = 2**64 - 1
    assert uniform(0, low=-1, high=3) == -1
    assert 3 - 1e-15 < uniform(highest, low=-1, high=3) < 3
    assert [below(word, 10) for word in (0, 2**63, highest)] == [0, 5, 9]
    words = augmentation_rng(0, 0, 0).bit_generator.random_raw(1000)
    assert below_array(words, 7).tolist() == [below(word, 7) for word in words.tolist()]
    rng = augmentation_rng(0, 0, 0)
    assert raw_words(rng, 400) + raw_words(rng, 600) == words.tolist()


def cut_by_definition(
    image: NDArray[np.uint8], words: list[int], *, length: int, fill: tuple[int, ...]
) -> NDArray[np.uint8]:
    """As `cutout` of google-research/sam's augmentation.py pads a mask of zeros with ones."""
    height, width = image.shape[:2]
    row, column = (words[0] >> 32) * height >> 32, (words[1] >> 32) * width >> 32
    lower, upper = max(0, row - length // 2), max(0, height - row - length // 2)
    left, right = max(0, column - length // 2), max(0, width - column - length // 2)
    inside = np.zeros((height - lower - upper, width - left - right))
    mask = np.pad(inside, ((lower, upper), (left, right)), constant_values=1)
    return np.where(mask[..., np.newaxis] == 0, np.array(fill, np.uint8), image)


@pytest.mark.parametrize(
    ("base", "length", "statistics", "fill"),
    [
        ("cifar_basic", 16, "cifar10", (125, 123, 114)),
        ("cifar_zero", 2, "cifar100", (129, 124, 112)),
        ("cifar_basic", 80, "none", (0, 0, 0)),
    ],
)
def test_cutout_is_that_of_its_authors(
    base: str, length: int, statistics: str, fill: tuple[int, ...]
) -> None:
    preset = transform_preset(f"{base}:cutout={length},statistics={statistics}")
    plain = transform_preset(base)
    images = some_images(40, 32, 28, 3)
    images.flags.writeable = False
    ids = np.arange(1000, 1040)
    words = augmentation_words(4, epochs=2, sample_ids=ids, num_words=5)
    together = batch_of(preset).augment(images, words)
    # The same shifts and flips as without.
    shifted = batch_of(plain).augment(images, words[:, :3])
    for place, sample_id in enumerate(ids.tolist()):
        alone = preset.augment(images[place], augmentation_rng(4, 2, sample_id))
        assert np.array_equal(together[place], alone)
        centre = words[place, 3:].tolist()
        assert np.array_equal(
            alone, cut_by_definition(shifted[place], centre, length=length, fill=fill)
        )


def test_the_blank_pixel_is_nearly_zero_after_normalising() -> None:
    for name in ("cifar10", "cifar100"):
        mean, std = STATISTICS[name]
        preset = transform_preset(f"cifar_basic:cutout=80,statistics={name}")
        blank = preset.augment(some_images(32, 32, 3), augmentation_rng(0, 0, 0))
        assert len(np.unique(blank.reshape(-1, 3), axis=0)) == 1
        assert np.abs((blank[0, 0] / 255 - mean) / std).max() < 0.5 / 255 / min(std or ())


def test_every_pixel_is_the_centre_equally_often() -> None:
    preset = transform_preset("cifar_zero:cutout=2,statistics=none")
    words = augmentation_words(0, epochs=0, sample_ids=np.arange(5000), num_words=5)
    # The fourth of nine shifts, which is none: shifts make pixels black, too.
    words[:, 1:3] = np.uint64(2**63)
    images = np.full((5000, 8, 8, 1), 255, np.uint8)
    blank = batch_of(preset).augment(images, words)[..., 0] == 0
    # The square of 2 x 2 has its centre at the lower right; at the border a part of it is left.
    centres = np.array([np.argwhere(image).max(axis=0) for image in blank])
    counts = np.zeros((8, 8))
    np.add.at(counts, tuple(centres.T), 1)
    assert chisquare(counts.ravel()).pvalue > 1e-3
    assert set(blank.sum(axis=(1, 2)).tolist()) == {1, 2, 4}
