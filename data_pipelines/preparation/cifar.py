"""`cifar10` and `cifar100`: 60 000 colour images of 32x32 pixels, from the published archives.

The archives "for Python" of https://www.cs.toronto.edu/~kriz/cifar.html hold pickles of Python 2.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.durable_files import pieces_of_file
from data_pipelines.errors import UserError
from data_pipelines.preparation.array_images import ArrayImages, mapped_array
from data_pipelines.preparation.gzipped_tars import gzipped_files
from data_pipelines.preparation.recipe import (
    DatasetRecipe,
    OpenedDataset,
    PreparationOptions,
    SplitSource,
    whole_split,
)
from data_pipelines.preparation.safe_pickle import load_plain_pickle
from data_pipelines.preparation.staging import staged, unchanged_file
from data_pipelines.progress import Progress

_SIDE = 32
_IMAGE_BYTES = 3 * _SIDE * _SIDE
# The largest file of the published archives has 155 MB.
_MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class _Edition:
    """One of the two published archives.

    Attributes:
        archive: File name of the archive.
        num_bytes: Size of the archive, as published.
        md5: Its checksum, as published.
        files: Names in the archive of the files of each split, in order.
        names_file: The file that names the classes.
        names_key: Where in it.
        label_key: Where in the other files the labels are.
    """

    archive: str
    num_bytes: int
    md5: str
    files: Mapping[str, tuple[str, ...]]
    names_file: str
    names_key: bytes
    label_key: bytes


_CIFAR10 = _Edition(
    archive="cifar-10-python.tar.gz",
    num_bytes=170498071,
    md5="c58f30108f718f92721af3b95e74349a",
    files={
        "train": tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        "val": ("cifar-10-batches-py/test_batch",),
    },
    names_file="cifar-10-batches-py/batches.meta",
    names_key=b"label_names",
    label_key=b"labels",
)

_CIFAR100 = _Edition(
    archive="cifar-100-python.tar.gz",
    num_bytes=169001437,
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    files={"train": ("cifar-100-python/train",), "val": ("cifar-100-python/test",)},
    names_file="cifar-100-python/meta",
    names_key=b"fine_label_names",
    label_key=b"fine_labels",
)


def _open(
    options: PreparationOptions, scratch: Path, progress: Progress, *, edition: _Edition
) -> OpenedDataset:
    archive = _archive(options, edition)
    num_bytes, md5 = archive.stat().st_size, _md5(archive)
    if num_bytes == edition.num_bytes and md5 != edition.md5:
        raise UserError(
            f"{archive}: damaged: it has the size of the published archive but the md5 {md5}, "
            f"not {edition.md5}; download it again"
        )
    folder = staged(
        scratch / "arrays",
        made_from=unchanged_file(archive),
        make=functools.partial(_convert, archive, edition),
    )
    class_names = tuple((folder / "classes.txt").read_text(encoding="utf-8").split("\n"))
    splits = {
        split: _split(folder, split, num_classes=len(class_names), options=options)
        for split in edition.files
    }
    is_published = md5 == edition.md5
    return OpenedDataset(
        splits=splits,
        num_classes=len(class_names),
        class_names=class_names,
        sources={archive.name: _described(num_bytes, md5)},
        notes=() if is_published else (f"not the published archive, whose md5 is {edition.md5}",),
    )


def _describe(
    options: PreparationOptions, scratch: Path, progress: Progress, *, edition: _Edition
) -> dict[str, str]:
    archive = _archive(options, edition)
    return {archive.name: _described(archive.stat().st_size, _md5(archive))}


def _described(num_bytes: int, md5: str) -> str:
    return f"{num_bytes} bytes, md5 {md5}"


def _archive(options: PreparationOptions, edition: _Edition) -> Path:
    assert options.source is not None, "the recipe requires it"
    archive = options.source / edition.archive if options.source.is_dir() else options.source
    if not archive.is_file():
        raise UserError(f"{archive}: no such file; it has to be the published archive")
    return archive


def _split(
    folder: Path, split: str, *, num_classes: int, options: PreparationOptions
) -> SplitSource:
    images_file = folder / f"{split}-images.npy"
    images: NDArray[np.uint8] = mapped_array(images_file)
    labels: NDArray[np.int64] = np.load(folder / f"{split}-labels.npy", allow_pickle=False)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"{split}: labels {labels.min()} … {labels.max()}, but the archive names "
            f"{num_classes} classes"
        )
    return whole_split(
        ArrayImages(images_file, labels),
        num_samples=len(images),
        num_bytes=images.nbytes,
        name=split,
        seed=options.seed,
    )


def _convert(archive: Path, edition: _Edition, folder: Path) -> None:
    """Writes images and labels of each split as arrays, and the names of the classes."""
    wanted = {edition.names_file, *(name for files in edition.files.values() for name in files)}
    contents = _read_files(archive, wanted)
    names = contents[edition.names_file].get(edition.names_key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise UserError(f"{archive}: {edition.names_file}: no list of class names")
    (folder / "classes.txt").write_text(b"\n".join(names).decode("utf-8"), encoding="utf-8")
    for split, files in edition.files.items():
        batches = [_batch(archive, name, contents.pop(name), edition.label_key) for name in files]
        images = np.concatenate([images for images, _ in batches])
        np.save(folder / f"{split}-images.npy", images, allow_pickle=False)
        labels = np.concatenate([labels for _, labels in batches])
        np.save(folder / f"{split}-labels.npy", labels, allow_pickle=False)


def _read_files(archive: Path, wanted: set[str]) -> dict[str, dict[Any, Any]]:
    """Reads the wanted members; nothing is ever unpacked, so their paths can do no harm."""
    files = gzipped_files(
        archive, name=str(archive), is_wanted=wanted.__contains__, most_bytes=_MAX_FILE_BYTES
    )
    found = {name: _load(archive, name, content) for name, content in files}
    missing = sorted(wanted - set(found))
    if missing:
        raise UserError(f"{archive}: {', '.join(missing)} missing: cut short or another archive")
    return found


def _load(archive: Path, name: str, content: bytes) -> dict[Any, Any]:
    try:
        value = load_plain_pickle(content)
    except ValueError as error:
        raise UserError(f"{archive}: {name}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{archive}: {name}: holds no dict")
    return value


def _batch(
    archive: Path, name: str, content: Mapping[Any, Any], label_key: bytes
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pixels, labels = content.get(b"data"), content.get(label_key)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _IMAGE_BYTES:
        raise UserError(f"{archive}: {name}: no array of {_IMAGE_BYTES} bytes an image")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise UserError(f"{archive}: {name}: no list of labels")
    if not 0 < len(labels) == len(pixels):
        raise UserError(f"{archive}: {name}: {len(pixels)} images, but {len(labels)} labels")
    # A plane a colour becomes three bytes a pixel.
    images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces_of_file(path):
        digest.update(piece)
    return digest.hexdigest()


def _recipe(name: str, num_classes: int, edition: _Edition) -> DatasetRecipe:
    return DatasetRecipe(
        name=name,
        description=(
            f"60 000 colour images of {num_classes} classes, 32x32 pixels; the test set becomes val"
        ),
        open=functools.partial(_open, edition=edition),
        describe=functools.partial(_describe, edition=edition),
        source=f"{edition.archive}, or the folder it is in",
    )


CIFAR10 = _recipe("cifar10", 10, _CIFAR10)
CIFAR100 = _recipe("cifar100", 100, _CIFAR100)
