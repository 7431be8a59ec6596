"""Evaluation of images that are much longer than wide, whose middle alone is resized."""

from collections.abc import Callable

import numpy as np
import pytest
import timm.data
from numpy.typing import NDArray
from PIL import Image

from data_pipelines import transform_preset
from data_pipelines.transforms import evaluation, resampling

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
@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1), (3, 9000)])
def test_memory_is_bounded(name: str, shape: tuple[int, int], resized: list[int]) -> None:
    assert transform_preset(name).prepare(smooth(*shape)).shape == (224, 224, 3)
    assert resized
    assert max(resized) <= 256 * 256 * 17


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(40, 2000), (1999, 40), (41, 1340)])
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


@pytest.mark.parametrize("shape", [(40, 640), (640, 40), (60, 959)])
def test_images_up_to_the_limit_are_as_timm_has_them(shape: tuple[int, int]) -> None:
    image = smooth(*shape)
    by_timm = timm.data.create_transform(
        224, crop_pct=0.9, interpolation="bicubic", use_prefetcher=True
    )
    expected = by_timm(Image.fromarray(image)).permute(1, 2, 0).numpy()
    assert np.array_equal(transform_preset("timm_0.9_bicubic").prepare(image), expected)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(40, 640), (640, 40), (375, 500), (7, 112)])
def test_up_to_the_limit_nothing_is_cut(
    name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, preset = smooth(*shape), transform_preset(name)
    found = preset.prepare(image)
    monkeypatch.setattr(evaluation, "_bounded", lambda image: image)
    assert np.array_equal(found, preset.prepare(image))
