"""`mnist` and `fashion_mnist`: 28x28 grey images of 10 classes, from the published IDX files."""

import functools
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.preparation.array_images import ArrayImages, mapped_array
from data_pipelines.preparation.idx_files import (
    convert_idx_images,
    find_idx_file,
    read_idx_labels,
)
from data_pipelines.preparation.recipe import (
    DatasetRecipe,
    OpenedDataset,
    PreparationOptions,
    SplitSource,
    whole_split,
)
from data_pipelines.preparation.staging import described_file, staged, unchanged_file
from data_pipelines.progress import Progress

_NUM_CLASSES = 10
_FILE_STEMS = {"train": "train", "val": "t10k"}
_PUBLISHED_SAMPLES = {"train": 60000, "val": 10000}
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def _open(
    options: PreparationOptions,
    scratch: Path,
    progress: Progress,
    *,
    class_names: tuple[str, ...],
) -> OpenedDataset:
    splits: dict[str, SplitSource] = {}
    notes: list[str] = []
    for split in _FILE_STEMS:
        images_file, labels_file = _find_files(options, split)
        labels = read_idx_labels(labels_file, num_classes=_NUM_CLASSES)
        folder = staged(
            scratch / split,
            made_from=unchanged_file(images_file),
            make=functools.partial(_convert, images_file),
        )
        images = mapped_array(folder / "images.npy")
        if len(images) != len(labels):
            raise UserError(
                f"{images_file}: {len(images)} images, but {labels_file.name} has "
                f"{len(labels)} labels"
            )
        if len(images) != _PUBLISHED_SAMPLES[split]:
            notes.append(
                f"{split}: {len(images)} samples, the published set has {_PUBLISHED_SAMPLES[split]}"
            )
        splits[split] = whole_split(
            ArrayImages(folder / "images.npy", labels),
            num_samples=len(images),
            num_bytes=images.nbytes,
            name=split,
            seed=options.seed,
        )
    return OpenedDataset(
        splits=splits,
        num_classes=_NUM_CLASSES,
        class_names=class_names,
        sources=_describe(options, scratch, progress),
        notes=tuple(notes),
    )


def _describe(options: PreparationOptions, scratch: Path, progress: Progress) -> dict[str, str]:
    return {
        file.name: described_file(file)
        for split in _FILE_STEMS
        for file in _find_files(options, split)
    }


def _find_files(options: PreparationOptions, split: str) -> tuple[Path, Path]:
    """Returns the files of the images and of the labels."""
    assert options.source is not None, "the recipe requires it"
    return (
        find_idx_file(options.source, f"{_FILE_STEMS[split]}-images", num_dimensions=3),
        find_idx_file(options.source, f"{_FILE_STEMS[split]}-labels", num_dimensions=1),
    )


def _convert(images_file: Path, folder: Path) -> None:
    convert_idx_images(images_file, out=folder / "images.npy")


_SOURCE = (
    "the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, each as it is or as .gz"
)

MNIST = DatasetRecipe(
    name="mnist",
    description="70 000 handwritten digits, grey, 28x28 pixels; the test set becomes val",
    open=functools.partial(_open, class_names=tuple("0123456789")),
    describe=_describe,
    source=_SOURCE,
    source_is_folder=True,
)

FASHION_MNIST = DatasetRecipe(
    name="fashion_mnist",
    description="70 000 pictures of clothes, grey, 28x28 pixels; the test set becomes val",
    open=functools.partial(_open, class_names=_FASHION_CLASSES),
    describe=_describe,
    source=_SOURCE,
    source_is_folder=True,
)
