"""Resizing and evaluation transforms against independent references."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import resizing_hash
import timm.data
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms

from data_pipelines import transform_preset
from data_pipelines.transforms import evaluation, resampling
from data_pipelines.transforms.resampling import (
    flip_left_right,
    resize_area,
    resize_bicubic,
    resize_bicubic_antialiased,
    resize_bilinear,
    resize_bilinear_antialiased,
)

Resize = Callable[..., NDArray[np.uint8]]
PHOTOGRAPHS = load_sample_images().images
# (height, width) of the input: reduced, enlarged, both, unchanged in one direction.
SIZES = [(427, 640), (300, 90), (40, 30), (96, 64), (1, 7)]
TARGET = (96, 112)
ALL: list[Resize] = [
    resize_bilinear,
    resize_bicubic,
    resize_area,
    resize_bilinear_antialiased,
    resize_bicubic_antialiased,
]


def part(height: int, width: int, number: int = 0) -> NDArray[np.uint8]:
    """Returns a crop of a photograph, a view with gaps."""
    image = PHOTOGRAPHS[number]
    return image[-height:, : min(width, image.shape[1])]


def interpolated(image: NDArray[np.uint8], mode: str) -> NDArray[np.float64]:
    pixels = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size=TARGET, mode=mode, align_corners=False, antialias=False)
    return resized[0].permute(1, 2, 0).numpy().clip(0, 255)


def area_weights(source: int, target: int) -> NDArray[np.float64]:
    """Returns the share of each source pixel in each target pixel, (target, source)."""
    edges = np.arange(target + 1) * source / target
    starts, stops = edges[:-1, None], edges[1:, None]
    pixels = np.arange(source)
    overlap = np.minimum(stops, pixels + 1) - np.maximum(starts, pixels)
    return overlap.clip(0) * target / source


def averaged(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    rows, columns = area_weights(image.shape[0], height), area_weights(image.shape[1], width)
    return np.einsum("hy,yxc,wx->hwc", rows, image.astype(np.float64), columns, optimize=True)


def by_pillow(image: NDArray[np.uint8], mode: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize(TARGET[::-1], mode))


def difference(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("resize", "mode"), [(resize_bilinear, "bilinear"), (resize_bicubic, "bicubic")]
)
def test_resizing_without_antialiasing(size: tuple[int, int], resize: Resize, mode: str) -> None:
    image = part(*size)
    result = resize(image, height=TARGET[0], width=TARGET[1])
    assert result.dtype == np.uint8
    assert difference(result, interpolated(image, mode)) <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("resize", "mode"),
    [
        (resize_bilinear_antialiased, Image.Resampling.BILINEAR),
        (resize_bicubic_antialiased, Image.Resampling.BICUBIC),
    ],
)
def test_resizing_with_antialiasing(
    size: tuple[int, int], resize: Resize, mode: Image.Resampling
) -> None:
    image = part(*size)
    result = resize(image, height=TARGET[0], width=TARGET[1])
    # Of the bicubic one it is the same.
    tolerance = 1 if mode == Image.Resampling.BILINEAR else 0
    assert difference(result, by_pillow(image, mode)) <= tolerance
    assert result.flags.c_contiguous


def test_each_channel_is_resized_by_itself() -> None:
    image = np.concatenate([part(50, 60), part(50, 60, 1)], axis=2)[:, :, :4]
    for resize in ALL:
        whole = resize(image, height=31, width=47)
        for channel in range(4):
            alone = resize(image[:, :, channel : channel + 1], height=31, width=47)
            assert np.array_equal(whole[:, :, channel : channel + 1], alone)


@pytest.mark.parametrize(("height", "width"), [(427, 640), (90, 100), (96, 200), (30, 20)])
def test_resizing_by_area(height: int, width: int) -> None:
    image = part(height, width)
    factor = 96 / min(height, width)
    target = round(height * factor), round(width * factor)
    result = resize_area(image, height=target[0], width=target[1])
    # Between rounded numbers, and OpenCV rounds twice where it enlarges.
    assert difference(result, averaged(image, *target)) <= 1


def test_the_filters_differ_by_more_than_the_tolerance() -> None:
    image = part(300, 400)
    results = [resize(image, height=TARGET[0], width=TARGET[1]) for resize in ALL]
    for place, result in enumerate(results):
        assert all(difference(result, other) > 8 for other in results[:place])


def test_read_only_and_transposed_images_are_resized() -> None:
    image = part(120, 150).copy()
    read_only = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    fortran = np.asfortranarray(image)
    for resize in ALL:
        expected = resize(image, height=50, width=60)
        assert np.array_equal(resize(read_only, height=50, width=60), expected)
        assert np.array_equal(resize(fortran, height=50, width=60), expected)
    assert np.array_equal(flip_left_right(read_only), image[:, ::-1])


@pytest.mark.parametrize("size", [224, 160])
@pytest.mark.parametrize("shape", [(427, 640), (400, 300), (100, 61), (40, 640)])
def test_evaluation_as_timm_and_torchvision_do_it(size: int, shape: tuple[int, int]) -> None:
    image = part(*shape)
    # With a "prefetcher" timm leaves normalising to others and gives bytes.
    by_timm = timm.data.create_transform(
        size, crop_pct=0.9, interpolation="bicubic", use_prefetcher=True
    )
    expected = by_timm(Image.fromarray(image)).permute(1, 2, 0).numpy()
    found = transform_preset(f"timm_0.9_bicubic:size={size}").prepare(image)
    assert np.array_equal(found, expected)
    classic = transforms.Compose([transforms.Resize(size * 8 // 7), transforms.CenterCrop(size)])
    found = transform_preset(f"inception_tv:size={size}").prepare(image)
    assert difference(found, np.asarray(classic(Image.fromarray(image)))) <= 1


@pytest.mark.parametrize("shape", [(427, 640), (400, 300), (100, 61), (250, 250)])
def test_evaluation_of_vision_transformers(shape: tuple[int, int]) -> None:
    image = part(*shape)
    factor = 256 / min(shape)
    resized = averaged(image, round(shape[0] * factor), round(shape[1] * factor))
    top, left = (resized.shape[0] - 224) // 2, (resized.shape[1] - 224) // 2
    found = transform_preset("inception_vit").prepare(image)
    assert difference(found, resized[top : top + 224, left : left + 224]) <= 1


@pytest.mark.parametrize("shape", [(427, 640), (401, 300), (100, 61)])
def test_evaluation_of_google_sam(shape: tuple[int, int]) -> None:
    image = part(*shape)
    side = int(0.875 * min(shape))
    top, left = (shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2
    square = image[top : top + side, left : left + side].astype(np.float64)
    pixels = torch.from_numpy(square).permute(2, 0, 1)[None]
    expected = F.interpolate(pixels, size=(224, 224), mode="bicubic", align_corners=False)
    found = transform_preset("inception_sam").prepare(image)
    assert difference(found, expected[0].permute(1, 2, 0).numpy().clip(0, 255)) <= 1


def test_fine_tuning_squashes_the_whole_image() -> None:
    image = part(200, 300)
    pixels = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    expected = F.interpolate(pixels, size=(64, 64), mode="bilinear", align_corners=False)
    found = transform_preset("inception_vit:size=64,evaluation=squash_bilinear").prepare(image)
    assert difference(found, expected[0].permute(1, 2, 0).numpy()) <= 1


def test_the_result_does_not_depend_on_the_processor(tmp_path: Path) -> None:
    """Repeats it without the instructions that torch and OpenCV use where a processor has them."""
    for number, size in enumerate(SIZES):
        np.save(tmp_path / f"{number}.npy", part(*size, number % 2))
    environment = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": "default",
        "OPENCV_CPU_DISABLE": "AVX,AVX2,FP16,FMA3",
        "OPENCV_IPP": "disabled",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, resizing_hash.__file__, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == resizing_hash.hash_of_results(tmp_path)


# Images much longer than wide, whose middle alone is resized.

PRESETS = ["resize256_crop224_area", "resize256_crop224_bilinear", "timm_0.9_bicubic"]


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """An image without sharp edges, which looks different everywhere."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = [np.sin(rows / 9 + columns / 14), np.cos(columns / 5), np.sin(rows / 5)]
    return np.rint(127 + 100 * np.stack(planes, axis=2)).astype(np.uint8)


@pytest.fixture
def resized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pixels each image has that is made by resizing."""
    sizes: list[int] = []
    for name in ("resize_area", "resize_bilinear_antialiased", "resize_bicubic_antialiased"):
        resize: Callable[..., NDArray[np.uint8]] = getattr(resampling, name)

        def counted(
            image: NDArray[np.uint8],
            *,
            height: int,
            width: int,
            resize: Callable[..., NDArray[np.uint8]] = resize,
        ) -> NDArray[np.uint8]:
            sizes.append(height * width)
            return resize(image, height=height, width=width)

        monkeypatch.setattr(evaluation, name, counted)
    return sizes


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(1, 20000), (9000, 3)])
def test_memory_is_bounded(name: str, shape: tuple[int, int], resized: list[int]) -> None:
    assert transform_preset(name).prepare(smooth(*shape)).shape == (224, 224, 3)
    assert resized
    assert max(resized) <= 256 * 256 * 17


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(40, 2000), (1340, 41)])
def test_it_is_the_middle_of_the_whole(
    name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = smooth(*shape)
    preset = transform_preset(name)
    found = preset.prepare(image).astype(int)
    monkeypatch.setattr(evaluation, "_MAX_ASPECT", 1000)
    whole = preset.prepare(image).astype(int)
    # The whole is rounded to another number of pixels, which moves the middle by a part of one.
    assert np.abs(found - whole).max() <= 12
    # Moved by a pixel of the image, it would differ by more.
    moved = preset.prepare(np.roll(image, 1, axis=int(shape[0] < shape[1]))).astype(int)
    assert np.abs(moved - whole).max() > 15


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(40, 640), (640, 40)])
def test_up_to_the_limit_nothing_is_cut(
    name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, preset = smooth(*shape), transform_preset(name)
    found = preset.prepare(image)
    monkeypatch.setattr(evaluation, "_bounded", lambda image: image)
    assert np.array_equal(found, preset.prepare(image))
