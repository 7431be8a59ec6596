"""What `loading_speed.py` compares: loaders of the same files, with the same augmentation.

All give normalised float32 (samples, channels, height, width) on the CPU, but for those named
"bytes for the device", whose batches are uint8: there the accelerator normalises.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import webdataset
from _loading_data import StoredImages
from numpy.typing import NDArray
from PIL import Image
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from data_pipelines.loading import MicroBatchLoader
from data_pipelines.reading import ShardReader
from data_pipelines.transforms import TransformPreset, normalise, transform_preset

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
# Takes the number of workers. What it returns is iterated once an epoch and keeps its workers.
MakeLoader = Callable[[int], Batches]

# What everything is measured against.
CLASSIC = "webdataset, torchvision"
_SHUFFLE_BUFFER = 1000


@dataclass(frozen=True)
class _Task:
    """What is to be loaded, and how.

    Attributes:
        images: The files.
        batch_size: Samples of a batch.
        preset: Our transform.
        crops: The same on Pillow images, up to where they become tensors.
    """

    images: StoredImages
    batch_size: int
    preset: TransformPreset
    crops: list[Any]

    @property
    def classic(self) -> Any:
        """The usual recipe: floats, normalised image by image."""
        mean, std = self.preset.mean, self.preset.std
        return transforms.Compose(
            [*self.crops, transforms.ToTensor(), transforms.Normalize(mean, std)]
        )


def photograph_contenders(images: StoredImages, *, batch_size: int) -> dict[str, MakeLoader]:
    """Returns the loaders of photographs: crops of 8 to 100 % resized to 224, mirrored."""
    crops = [
        transforms.RandomResizedCrop(224, scale=(0.08, 1), ratio=(3 / 4, 4 / 3)),
        transforms.RandomHorizontalFlip(),
    ]
    task = _Task(images, batch_size, transform_preset("inception_tv"), crops)
    return {
        CLASSIC: partial(_webdataset, task),
        "timm's reader and transforms": partial(_timm, task, transform=None),
        "torchvision ImageFolder": partial(_image_folder, task),
        "data_pipelines": partial(_ours, task),
        "timm, bytes for the device": partial(_timm, task, transform=None, as_bytes=True),
        "data_pipelines, bytes for the device": partial(_ours, task, as_bytes=True),
    }


def small_contenders(images: StoredImages, *, batch_size: int) -> dict[str, MakeLoader]:
    """Returns the loaders of images of 32 x 32: shifted by up to 4 pixels, mirrored.

    Keeping all images in memory is as usual for CIFAR as reading them from files is.
    """
    crops = [
        transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
    ]
    task = _Task(images, batch_size, transform_preset("cifar_basic"), crops)
    # timm has no such crop; its loader normalises whole batches, so its images stay bytes.
    to_bytes = transforms.Compose([*crops, transforms.PILToTensor()])
    return {
        CLASSIC: partial(_webdataset, task),
        "timm's reader, torchvision": partial(_timm, task, transform=to_bytes),
        "torchvision ImageFolder": partial(_image_folder, task),
        "in memory, torchvision": partial(_in_memory, task),
        "data_pipelines, streamed": partial(_ours, task),
        "data_pipelines, resident": partial(_ours, task, resident=True),
        "data_pipelines, resident, bytes for the device": partial(
            _ours, task, resident=True, as_bytes=True
        ),
    }


def _webdataset(task: _Task, num_workers: int) -> Batches:
    shards = task.images.shards
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(_SHUFFLE_BUFFER)
        .decode("pil")
        .to_tuple(task.images.ending, "cls")
        .map_tuple(task.classic)
    )
    return _data_loader(dataset, task, num_workers)


def _timm(
    task: _Task, num_workers: int, *, transform: Any | None, as_bytes: bool = False
) -> Batches:
    """Loads with timm's reader, collation and normalisation.

    Args:
        task: What is to be loaded.
        num_workers: Processes that load.
        transform: From Pillow images to bytes; None takes timm's own.
        as_bytes: Leaves normalising out.
    """
    mean, std = task.preset.mean, task.preset.std
    assert mean is not None
    assert std is not None
    dataset = create_dataset(
        "wds/images",
        root=str(task.images.index.directory),
        split="train",
        is_training=True,
        batch_size=task.batch_size,
    )
    loader = create_loader(
        dataset,
        input_size=(3, 224, 224),
        batch_size=task.batch_size,
        is_training=True,
        color_jitter=None,  # type: ignore[arg-type]
        interpolation="bilinear",
        mean=mean,
        std=std,
        num_workers=num_workers,
        device=torch.device("cpu"),
    )
    if transform is not None:
        dataset.transform = transform
    batches: Batches = loader.loader if as_bytes else loader
    return batches


def _image_folder(task: _Task, num_workers: int) -> Batches:
    dataset = ImageFolder(str(task.images.folder), transform=task.classic)
    return _data_loader(dataset, task, num_workers, shuffle=True)


def _in_memory(task: _Task, num_workers: int) -> Batches:
    index = task.images.index
    samples = dict(ShardReader(index).read(range(index.num_samples)))
    places = range(index.num_samples)
    dataset = _ImagesInMemory(
        np.stack([samples[place].image for place in places]),
        [samples[place].label for place in places],
        task.classic,
    )
    return _data_loader(dataset, task, num_workers, shuffle=True)


@dataclass(frozen=True)
class _ImagesInMemory(Dataset[tuple[torch.Tensor, int]]):
    """Works as `torchvision.datasets.CIFAR10`, which reads its own files only."""

    images: NDArray[np.uint8]
    labels: list[int]
    transform: Any

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        image: torch.Tensor = self.transform(Image.fromarray(self.images[place]))
        return image, self.labels[place]


def _data_loader(dataset: Any, task: _Task, num_workers: int, **settings: Any) -> Batches:
    return DataLoader(
        dataset,
        batch_size=task.batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        **settings,
    )


def _ours(
    task: _Task, num_workers: int, *, resident: bool = False, as_bytes: bool = False
) -> Batches:
    loader = MicroBatchLoader(
        task.images.index,
        order="global",
        seed=0,
        batch_size=task.batch_size,
        positions=[range(task.batch_size)],
        transform=task.preset,
        num_workers=num_workers,
        first_step=0,
        num_steps=task.images.num_samples // task.batch_size,
        resident=resident,
    )
    return loader if as_bytes else _Normalised(loader, task.preset)


@dataclass(frozen=True)
class _Normalised:
    """Batches of bytes as floats."""

    loader: Batches
    preset: TransformPreset

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.loader:
            yield normalise(images, preset=self.preset, dtype=torch.float32), labels
