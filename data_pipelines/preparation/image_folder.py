"""`image_folder`: any images that lie in a folder a class."""

import shutil
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.preparation.class_folders import ClassFolders, class_names_of, find_images
from data_pipelines.preparation.recipe import (
    DatasetRecipe,
    OpenedDataset,
    PreparationOptions,
    SplitSource,
    fraction_splits,
    whole_split,
)
from data_pipelines.progress import Progress

_TRAIN = "train"
# The first of these that is there is the validation split.
_VAL_NAMES = ("val", "valid", "validation", "test")


def _open(options: PreparationOptions, scratch: Path, progress: Progress) -> OpenedDataset:
    return open_class_folders(
        _find_roots(options), options=options, scratch=scratch, progress=progress
    )


def _describe(options: PreparationOptions, scratch: Path, progress: Progress) -> dict[str, str]:
    return describe_class_folders(_find_roots(options), scratch=scratch, progress=progress)


def _find_roots(options: PreparationOptions) -> dict[str, Path]:
    assert options.source is not None, "the recipe requires it"
    train, val = options.source, None
    if (options.source / _TRAIN).is_dir():
        train = options.source / _TRAIN
        beside = (options.source / name for name in _VAL_NAMES)
        val = next((folder for folder in beside if folder.is_dir()), None)
    _check_fraction(options, train=train, val=val)
    return {"train": train} | ({"val": val} if val is not None else {})


def open_class_folders(
    roots: dict[str, Path], *, options: PreparationOptions, scratch: Path, progress: Progress
) -> OpenedDataset:
    """Opens one folder of class folders for each split.

    Args:
        roots: The folder by split; `train` says which classes there are. Without `val` it is cut by
            `options.val_fraction`.
        options: Seed and fraction.
        scratch: Where lists are kept.
        progress: Is told how far it is.

    Raises:
        UserError: See `find_images`.
    """
    class_names = class_names_of(roots["train"])
    folders = _list_images(roots, class_names, scratch=scratch, progress=progress)
    splits: dict[str, SplitSource] = {}
    for split, found in folders.items():
        splits |= _splits(found, split=split, cut=len(roots) == 1, options=options)
    return OpenedDataset(
        splits=splits,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        sources=_described(folders),
        notes=tuple(note for found in folders.values() for note in found.notes),
    )


def describe_class_folders(
    roots: dict[str, Path], *, scratch: Path, progress: Progress
) -> dict[str, str]:
    """Returns the `OpenedDataset.sources` of `open_class_folders`.

    Raises:
        UserError: See `find_images`.
    """
    class_names = class_names_of(roots["train"])
    return _described(_list_images(roots, class_names, scratch=scratch, progress=progress))


def _list_images(
    roots: dict[str, Path], class_names: list[str], *, scratch: Path, progress: Progress
) -> dict[str, ClassFolders]:
    folders: dict[str, ClassFolders] = {}
    for split, root in roots.items():
        listing = scratch / f"{split}-images"
        # Listed anew each time: nothing else tells whether a folder is what it was.
        shutil.rmtree(listing, ignore_errors=True)
        listing.mkdir()
        folders[split] = find_images(
            root, class_names=class_names, scratch=listing, progress=progress
        )
    return folders


def _described(folders: dict[str, ClassFolders]) -> dict[str, str]:
    tables = {split: found.images.table for split, found in folders.items()}
    return {
        "all images" if len(folders) == 1 else split: (
            f"{len(table)} images, {table.num_bytes} bytes, names and sizes sha256 {table.sha256}"
        )
        for split, table in tables.items()
    }


def _splits(
    found: ClassFolders, *, split: str, cut: bool, options: PreparationOptions
) -> dict[str, SplitSource]:
    num_samples, num_bytes = len(found.images.table), found.images.table.num_bytes
    if cut:
        return fraction_splits(
            found.images,
            num_samples=num_samples,
            num_bytes=num_bytes,
            seed=options.seed,
            val_fraction=options.val_fraction or 0.0,
        )
    return {
        split: whole_split(
            found.images,
            num_samples=num_samples,
            num_bytes=num_bytes,
            name=split,
            seed=options.seed,
        )
    }


def _check_fraction(options: PreparationOptions, *, train: Path, val: Path | None) -> None:
    if val is not None and options.val_fraction is not None:
        raise UserError(
            f"val-fraction: without effect, {val} is the validation split; leave it out"
        )
    if val is None and options.val_fraction is None:
        raise UserError(
            f"{train}: has no validation split beside it; give val-fraction, such as 0.1, or 0 for "
            "none"
        )


IMAGE_FOLDER = DatasetRecipe(
    name="image_folder",
    description="any images in a folder a class: JPEG, PNG or WebP, stored as they are",
    open=_open,
    describe=_describe,
    source_is_folder=True,
    source=("a folder that holds train/CLASS/… and val/CLASS/… (or test/), or CLASS/… to be split"),
    optional=frozenset({"val_fraction"}),
)
