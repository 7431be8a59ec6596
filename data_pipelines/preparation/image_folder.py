"""`image_folder`: any images that lie in a folder a class."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from data_pipelines.errors import UserError, a_few
from data_pipelines.preparation.class_folders import (
    ClassFolders,
    Level,
    class_names_of,
    find_images,
    level_of,
)
from data_pipelines.preparation.recipe import (
    DatasetRecipe,
    OpenedDataset,
    PreparationOptions,
    SplitSource,
    fraction_splits,
    whole_split,
)
from data_pipelines.progress import Progress
from data_pipelines.sources.file_names import split_of


def _open(options: PreparationOptions, scratch: Path, progress: Progress) -> OpenedDataset:
    roots, notes = _find_roots(options)
    dataset = open_class_folders(roots, options=options, scratch=scratch, progress=progress)
    return replace(dataset, notes=(*notes, *dataset.notes))


def _describe(options: PreparationOptions, scratch: Path, progress: Progress) -> dict[str, str]:
    return describe_class_folders(_find_roots(options)[0], scratch=scratch, progress=progress)


def _find_roots(options: PreparationOptions) -> tuple[dict[str, Path], list[str]]:
    """Finds the folder of class folders of each split, and says what else there is."""
    assert options.source is not None, "the recipe requires it"
    folder = _unwrapped(options.source)
    levels = _levels_in(folder)
    named = _splits_among(folder, levels)
    roots, notes = {"train": folder}, []
    if named:
        val = named.get("val") or named.get("test")
        roots = {"train": folder / named["train"]} | ({"val": folder / val} if val else {})
        left_out = sorted(set(levels) - {path.name for path in roots.values()})
        if left_out:
            notes.append(f"{folder}: left out, beside the splits: {a_few(left_out)}")
    _check_fraction(options, train=roots["train"], val=roots.get("val"))
    roots = {split: _unwrapped(root) for split, root in roots.items()}
    for root in roots.values():
        _check_classes(root)
    return roots, notes


def _levels_in(folder: Path) -> dict[str, Level]:
    return {
        name: level_of(folder / name, stops_at_image=split_of(name) is None)
        for name in sorted(level_of(folder).folders)
    }


def _unwrapped(root: Path) -> Path:
    """Goes through folders that hold nothing but one folder, which is no class then."""
    folder = root
    while True:
        has_images, folders = level_of(folder)
        if has_images or not folders:
            return root
        if len(folders) > 1 or any(map(split_of, folders)):
            return folder
        folder /= next(iter(folders))


def _splits_among(folder: Path, levels: Mapping[str, Level]) -> dict[str, str]:
    """Returns the names of the folders that are splits; none where all are classes.

    Images may well be of trains or of tests: a folder of such a name is a split when it is of
    folders, or when there are others of that kind and no classes.
    """
    by_split: dict[str, list[str]] = {}
    for name in levels:
        by_split.setdefault(split_of(name) or "", []).append(name)
    others = by_split.pop("", [])
    is_alone = len(by_split) == 1
    of_folders = [
        name
        for names in by_split.values()
        for name in names
        if levels[name].folders and not (levels[name].has_images and is_alone and others)
    ]
    if not by_split or (not of_folders and is_alone and others):
        return {}
    for split, names in by_split.items():
        if len(names) > 1:
            raise UserError(
                f"{folder}: {a_few(names)} are all called after the split {split}; move all but "
                "one away, or rename what are classes"
            )
    splits = {split: names[0] for split, names in by_split.items()}
    classes = [name for name in others if levels[name] != Level(False, frozenset())]
    if "train" not in splits:
        raise UserError(
            f"{folder}: {a_few(splits.values())}: called after a split, but none is called after "
            "train; rename the folder to train on to train, or a class to something else"
        )
    if is_alone and classes:
        raise UserError(
            f"{folder}: {splits['train']} is called after a split, and {a_few(classes)} beside it "
            "is not; rename what to validate on to val, or move classes and splits apart"
        )
    return splits


def _check_classes(root: Path) -> None:
    """Refuses class folders that are rather splits, folds or sources of the same classes."""
    levels = _levels_in(root)
    without_images = [name for name, level in levels.items() if not level.has_images]
    if len(levels) == len(without_images) == 1 and len(levels[without_images[0]].folders) > 1:
        raise UserError(
            f"{root}: all images would be of the one class {without_images[0]}; give that folder "
            "as the source, or move the images beside it away"
        )
    for one, other in combinations(without_images, 2):
        shared = levels[one].folders & levels[other].folders
        if len(shared) > 1:
            raise UserError(
                f"{root}: {one} and {other} hold no images themselves but folders of the same "
                f"names ({a_few(sorted(shared))}), as splits do and classes do not: rename the "
                "folder to train on to train and the one to validate on to val, give one of them "
                "as the source, or move a class's images into the folder of the class"
            )


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
            f"val-fraction: without effect, {val} is the validation split of {train}; leave it out"
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
