"""Folders with a subfolder of images for each class, the layout of torchvision's `ImageFolder`."""

import functools
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import UserError, a_few
from data_pipelines.index.limits import MOST_SAMPLE_BYTES
from data_pipelines.preparation.image_sources import IMAGE_COLUMNS, FolderImages
from data_pipelines.preparation.image_table import ImageEntry, ImageTable, write_image_table
from data_pipelines.preparation.record import printable
from data_pipelines.progress import Progress
from data_pipelines.sources.file_names import is_no_data

# Images as others understand them, but not by the decoders here.
_FOREIGN_IMAGES = (".avif", ".bmp", ".gif", ".heic", ".pbm", ".pgm", ".ppm", ".tif", ".tiff")
_PROGRESS_EVERY = 2000


@dataclass(frozen=True)
class ClassFolders:
    """The images that were found.

    Attributes:
        images: All of them, by class and name.
        left_out: How many other files there are, by the ending of their name.
        beside: How many images lie beside the class folders instead of in one, likewise.
        endings: How many images there are, likewise.
    """

    images: FolderImages
    left_out: Counter[str]
    beside: Counter[str]
    endings: Counter[str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: files left out, and images of several formats."""
        notes = []
        if self.left_out:
            notes.append(f"{self.images.root}: left out, no images: {_counts(self.left_out)}")
        if self.beside:
            notes.append(
                f"{self.images.root}: left out, beside the class folders: {_counts(self.beside)}"
            )
        if len({IMAGE_COLUMNS[ending] for ending in self.endings}) > 1:
            notes.append(
                f"images of several formats ({_counts(self.endings)}) are all stored as "
                f".{self.images.column}; decoders look at the content"
            )
        return tuple(notes)


class Level(NamedTuple):
    """What lies in a folder itself: whether images do, and the names of the folders."""

    has_images: bool
    folders: frozenset[str]


def level_of(folder: Path, *, stops_at_image: bool = False) -> Level:
    """Looks into a folder; hidden files and folders are none.

    Args:
        folder: Which one.
        stops_at_image: Not all names of folders are wanted where there are images, too.
    """
    has_images, folders = False, set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_no_data(entry.name):
                continue
            if entry.is_dir():
                folders.add(entry.name)
            elif not has_images:
                ending = Path(entry.name).suffix.lower()
                has_images = ending in IMAGE_COLUMNS or ending in _FOREIGN_IMAGES
                if has_images and stops_at_image:
                    break
    return Level(has_images, frozenset(folders))


def class_names_of(root: Path) -> list[str]:
    """Returns the names of the class folders, sorted: their places are the class numbers.

    Names that are all numbers are sorted by their value.

    Raises:
        UserError: There are none, or a name is not UTF-8.
    """
    names = sorted(level_of(root).folders)
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=int)
    if not names:
        raise UserError(f"{root}: has no subfolders; each class needs one, with its images")
    for name in names:
        if printable(name) != name:
            raise UserError(
                f"{printable(str(root / name))}: the name of a class has to be UTF-8; rename the "
                "folder"
            )
    return names


def find_images(
    root: Path, *, class_names: Sequence[str], scratch: Path, progress: Progress
) -> ClassFolders:
    """Lists the images below each class folder, at any depth, links followed.

    Args:
        root: Holds the class folders.
        class_names: All classes; `root` may lack some, but may not have others.
        scratch: An existing folder for the list; it is made anew.
        progress: Is told how far it is.

    Raises:
        UserError: A class is unknown or has no images, an image is of a format that cannot be
            decoded, or a folder is reached on two ways.
    """
    unknown = sorted(set(class_names_of(root)) - set(class_names))
    if unknown:
        raise UserError(f"{root}: classes that training does not have: {a_few(unknown)}")
    left_out: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    entries = _entries(root, class_names, left_out=left_out, endings=endings)
    folder = scratch / "listing"
    folder.mkdir()
    counted = _counted(entries, functools.partial(progress, f"listing {root.name}"))
    write_image_table(folder, counted)
    columns = {IMAGE_COLUMNS[ending] for ending in endings}
    images = FolderImages(
        root=root,
        table=ImageTable(folder),
        column=columns.pop() if len(columns) == 1 else "jpg",
    )
    beside = Counter(ending for ending in map(_ending, os.scandir(root)) if ending)
    return ClassFolders(images=images, left_out=left_out, beside=beside, endings=endings)


def _entries(
    root: Path, class_names: Sequence[str], *, left_out: Counter[str], endings: Counter[str]
) -> Iterator[ImageEntry]:
    visited: dict[tuple[int, int], Path] = {}
    for label, class_name in enumerate(class_names):
        if not (root / class_name).is_dir():
            continue
        found = sorted(_images_below(root / class_name, left_out=left_out, visited=visited))
        if not found:
            raise UserError(
                f"{root / class_name}: holds no images ({', '.join(sorted(IMAGE_COLUMNS))})"
            )
        for path, num_bytes in found:
            endings[path.suffix.lower()] += 1
            name = str(path.relative_to(root))
            yield ImageEntry(name=name, label=label, offset=0, num_bytes=num_bytes)


def _images_below(
    folder: Path, *, left_out: Counter[str], visited: dict[tuple[int, int], Path]
) -> Iterator[tuple[Path, int]]:
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        _check_first_visit(Path(parent), visited)
        folders[:] = [name for name in folders if not is_no_data(name)]
        for name in files:
            if is_no_data(name):
                continue
            path = Path(parent, name)
            ending = path.suffix.lower()
            if ending in _FOREIGN_IMAGES:
                raise UserError(
                    f"{path}: images ending in {ending} cannot be decoded; convert them to one of "
                    f"{', '.join(sorted(IMAGE_COLUMNS))} or move them away"
                )
            if ending in IMAGE_COLUMNS:
                yield path, _checked_size(path)
            else:
                left_out[ending or "(no ending)"] += 1


def _checked_size(path: Path) -> int:
    """The size of a file that can be an image; reading a pipe or a device has no end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_SAMPLE_BYTES:
        raise UserError(
            f"{path}: no file of at most {MOST_SAMPLE_BYTES} bytes, so no image; move it away"
        )
    return status.st_size


def _check_first_visit(folder: Path, visited: dict[tuple[int, int], Path]) -> None:
    """Refuses links in a circle, and a second one to the same folder: they multiply samples."""
    status = folder.stat()
    before = visited.setdefault((status.st_dev, status.st_ino), folder)
    if before is not folder:
        raise UserError(
            f"{folder}: the same folder as {before}, whose images would count twice; remove the "
            "link"
        )


def _ending(entry: os.DirEntry[str]) -> str | None:
    """Returns the ending of a file's name if it is an image's that can be stored."""
    ending = Path(entry.name).suffix.lower()
    is_image = ending in IMAGE_COLUMNS and not is_no_data(entry.name) and entry.is_file()
    return ending if is_image else None


def _counted(
    entries: Iterator[ImageEntry], progress: functools.partial[None]
) -> Iterator[ImageEntry]:
    number = 0
    for number, entry in enumerate(entries, start=1):
        if number % _PROGRESS_EVERY == 0:
            progress(done=number, total=None, unit="images")
        yield entry
    progress(done=number, total=number, unit="images")


def _raise(error: OSError) -> None:
    raise error


def _counts(counter: Counter[str]) -> str:
    return a_few(
        (f"{count} {printable(ending)}" for ending, count in sorted(counter.items())), most=10
    )
