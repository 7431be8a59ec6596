"""Input brought once into a form that can be read in any order, and kept until the end."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from data_pipelines.durable_files import new_directory, sha256_of_file

_MADE_FROM_FILE = "made_from.json"


def staged(
    folder: Path, *, made_from: Mapping[str, object], make: Callable[[Path], object]
) -> Path:
    """Returns `folder` with the files that `make` writes, made earlier from the same or now.

    Args:
        folder: Appears whole or not at all.
        made_from: What decides the content; other content is made anew.
        make: Writes the files into the folder it is given.
    """
    text = json.dumps(made_from, sort_keys=True)
    if folder.exists():
        if (folder / _MADE_FROM_FILE).read_text(encoding="utf-8") == text:
            return folder
        shutil.rmtree(folder)
    with new_directory(folder) as partial:
        make(partial)
        (partial / _MADE_FROM_FILE).write_text(text, encoding="utf-8")
    return folder


def is_staged(folder: Path) -> bool:
    """Returns whether `staged` has made this folder."""
    return (folder / _MADE_FROM_FILE).is_file()


def unchanged_file(path: Path) -> dict[str, object]:
    """Returns what tells, without reading it, that a file is the same as before."""
    status = path.stat()
    return {"path": str(path), "bytes": status.st_size, "modified": status.st_mtime_ns}


def described_file(path: Path) -> str:
    """Returns size and checksum of a file, for the record."""
    return f"{path.stat().st_size} bytes, sha256 {sha256_of_file(path)}"
