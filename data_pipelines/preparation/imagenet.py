"""`imagenet`: ILSVRC2012, 1.28 million photographs of 1000 classes.

From the published files, which are read where they lie and never unpacked: the training tar holds
a tar a class, the validation tar the images, and the development kit the validation labels. Class
numbers are the places of the WordNet ids in their sorted order, as everywhere else.
"""

import functools
import io
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import UserError
from data_pipelines.preparation.gzipped_tars import gzipped_files
from data_pipelines.preparation.image_folder import describe_class_folders, open_class_folders
from data_pipelines.preparation.image_sources import TarImages
from data_pipelines.preparation.image_table import ImageEntry, ImageTable, write_image_table
from data_pipelines.preparation.recipe import (
    DatasetRecipe,
    OpenedDataset,
    PreparationOptions,
    SplitSource,
    whole_split,
)
from data_pipelines.preparation.staging import described_file, staged, unchanged_file
from data_pipelines.preparation.tar_members import walk_tar
from data_pipelines.progress import Progress

_TRAIN_TAR = "ILSVRC2012_img_train.tar"
_VAL_TAR = "ILSVRC2012_img_val.tar"
_KIT = "ILSVRC2012_devkit_t12.tar.gz"
_KIT_META = "ILSVRC2012_devkit_t12/data/meta.mat"
_KIT_LABELS = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
# The published files have 1 MB, the labels 200 kB.
_MOST_KIT_BYTES = 64 << 20
_MAT_HEADER_BYTES, _MAT_COMPRESSED = 128, 15
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class _Class(NamedTuple):
    """What the development kit says about a class."""

    wordnet_id: str
    num_train_images: int


@dataclass(frozen=True)
class _DevelopmentKit:
    """The classes by the kit's own number, and that number for each validation image in order."""

    classes: Mapping[int, _Class]
    validation: tuple[int, ...]

    @property
    def labels(self) -> dict[str, int]:
        """The class number by WordNet id."""
        names = sorted(each.wordnet_id for each in self.classes.values())
        return {name: label for label, name in enumerate(names)}


def _open(options: PreparationOptions, scratch: Path, progress: Progress) -> OpenedDataset:
    source = options.source
    assert source is not None, "the recipe requires it"
    roots = _class_folders(source)
    if roots is not None:
        return open_class_folders(roots, options=options, scratch=scratch, progress=progress)
    kit = _read_kit(source / _KIT)
    entries = {
        "train": functools.partial(_train_entries, source / _TRAIN_TAR, kit, progress),
        "val": functools.partial(_val_entries, source / _VAL_TAR, kit),
    }
    tars = {"train": source / _TRAIN_TAR, "val": source / _VAL_TAR}
    splits: dict[str, SplitSource] = {}
    sources = _described_files(source)
    for split, tar in tars.items():
        folder = staged(
            scratch / f"{split}-images",
            made_from=unchanged_file(tar) | {"kit": sources[_KIT]},
            make=functools.partial(_write_table, entries[split]),
        )
        table = ImageTable(folder)
        sources[tar.name] += f", names and places sha256 {table.sha256}"
        splits[split] = whole_split(
            TarImages(path=tar, table=table, column="jpg"),
            num_samples=len(table),
            num_bytes=table.num_bytes,
            name=split,
            seed=options.seed,
        )
    return OpenedDataset(
        splits=splits,
        num_classes=len(kit.classes),
        class_names=tuple(kit.labels),
        sources=sources,
    )


def _describe(options: PreparationOptions, scratch: Path, progress: Progress) -> dict[str, str]:
    assert options.source is not None, "the recipe requires it"
    roots = _class_folders(options.source)
    if roots is not None:
        return describe_class_folders(roots, scratch=scratch, progress=progress)
    return _described_files(options.source)


def _class_folders(source: Path) -> dict[str, Path] | None:
    """Returns the folder of each split, or None when the published files are there instead."""
    roots = {split: source / split for split in ("train", "val")}
    if all(root.is_dir() for root in roots.values()):
        return roots
    missing = [name for name in (_TRAIN_TAR, _VAL_TAR, _KIT) if not (source / name).is_file()]
    if missing:
        raise UserError(
            f"{source}: holds neither train/ and val/ with a folder a class nor "
            f"{', '.join(missing)}"
        )
    return None


def _described_files(source: Path) -> dict[str, str]:
    """Returns what can be said without walking through the tars, of 150 GB."""
    sizes = {name: f"{(source / name).stat().st_size} bytes" for name in (_TRAIN_TAR, _VAL_TAR)}
    return {_KIT: described_file(source / _KIT)} | sizes


def _write_table(entries: functools.partial[Iterator[ImageEntry]], folder: Path) -> None:
    write_image_table(folder, entries())


def _train_entries(path: Path, kit: _DevelopmentKit, progress: Progress) -> Iterator[ImageEntry]:
    labels = kit.labels
    num_images = {each.wordnet_id: each.num_train_images for each in kit.classes.values()}
    missing = set(labels)
    for done, inner in enumerate(walk_tar(path)):
        progress("listing classes", done=done, total=len(labels), unit="classes")
        wordnet_id = inner.name.removesuffix(".tar")
        if wordnet_id not in missing:
            raise UserError(
                f"{path}: {inner.name}: there a second time, or no class of the development kit"
            )
        missing.remove(wordnet_id)
        count = 0
        inner_end = inner.offset_data + inner.size
        for member in walk_tar(path, start=inner.offset_data, stop=inner_end):
            if not re.fullmatch(rf"{wordnet_id}_\d+\.JPEG", member.name):
                raise UserError(f"{path}: {inner.name}: {member.name!r} is no image of this class")
            count += 1
            yield ImageEntry(member.name, labels[wordnet_id], member.offset_data, member.size)
        if count != num_images[wordnet_id]:
            raise UserError(
                f"{path}: {inner.name}: {count} images, but the development kit says "
                f"{num_images[wordnet_id]}"
            )
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(labels)} classes are missing, such as "
            f"{min(missing)}.tar"
        )


def _val_entries(path: Path, kit: _DevelopmentKit) -> Iterator[ImageEntry]:
    labels = kit.labels
    missing = set(range(1, len(kit.validation) + 1))
    for member in walk_tar(path):
        match = _VAL_IMAGE.fullmatch(member.name)
        if match is None or int(match[1]) not in missing:
            raise UserError(
                f"{path}: {member.name!r}: there a second time, or no validation image "
                f"1 … {len(kit.validation)}"
            )
        missing.remove(int(match[1]))
        wordnet_id = kit.classes[kit.validation[int(match[1]) - 1]].wordnet_id
        yield ImageEntry(member.name, labels[wordnet_id], member.offset_data, member.size)
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(kit.validation)} images are missing, such as number "
            f"{min(missing)}"
        )


def _read_kit(path: Path) -> _DevelopmentKit:
    wanted = {_KIT_META, _KIT_LABELS}
    contents = dict(
        gzipped_files(
            path, name=str(path), is_wanted=wanted.__contains__, most_bytes=_MOST_KIT_BYTES
        )
    )
    missing = [name for name in (_KIT_META, _KIT_LABELS) if name not in contents]
    if missing:
        raise UserError(f"{path}: {' and '.join(missing)} missing: cut short or another archive")
    try:
        classes = _read_classes(contents[_KIT_META])
        validation = tuple(map(int, contents[_KIT_LABELS].split()))
    # The library stumbles over what is no such file in as many ways as the format has parts.
    except Exception as error:
        raise UserError(f"{path}: not as published: {type(error).__name__}: {error}") from error
    unknown = sorted(set(validation) - set(classes))
    if unknown or not validation:
        raise UserError(f"{path}: {_KIT_LABELS}: unknown classes {unknown[:5]}, or no labels")
    return _DevelopmentKit(classes=classes, validation=validation)


def _check_unpacked(content: bytes) -> None:
    """Refuses compressed parts of a MATLAB file that unpack to more than such a file has.

    The format ("MAT-File Level 5") has a header of 128 bytes and then parts, each of a type and a
    size of four bytes. The library unpacks a compressed one whole.
    """
    start, num_bytes = _MAT_HEADER_BYTES, 0
    while start + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, start)
        start += 8
        if kind == _MAT_COMPRESSED:
            unpacked = zlib.decompressobj().decompress(
                content[start : start + size], _MOST_KIT_BYTES + 1
            )
            num_bytes += len(unpacked)
        if num_bytes > _MOST_KIT_BYTES:
            raise ValueError(f"unpacks to more than {_MOST_KIT_BYTES} bytes")
        start += size


def _read_classes(content: bytes) -> dict[int, _Class]:
    """Reads the classes, which are the synsets without children, from MATLAB's format."""
    from scipy.io import loadmat

    _check_unpacked(content)
    synsets = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    return {
        int(synset["ILSVRC2012_ID"]): _Class(
            wordnet_id=str(synset["WNID"]),
            num_train_images=int(synset["num_train_images"]),
        )
        for synset in synsets
        if int(synset["num_children"]) == 0
    }


IMAGENET = DatasetRecipe(
    name="imagenet",
    description="ILSVRC2012: 1.28 million photographs of 1000 classes, JPEG, stored as they are",
    open=_open,
    describe=_describe,
    source_is_folder=True,
    source=(
        f"the folder with {_TRAIN_TAR}, {_VAL_TAR} and {_KIT}, or with train/CLASS/… and "
        "val/CLASS/…"
    ),
)
