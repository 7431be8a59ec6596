"""Where checkpoints are: `step-00000123/` folders and a file `latest` that names one."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

from data_pipelines.durable_files import (
    flush,
    partial_name,
    remove_partials,
    replace_file,
)
from data_pipelines.errors import UserError

MANIFEST = "manifest.json"
_LATEST = "latest"
_STEP_FOLDER = re.compile(r"step-(\d{8,19})")
_REPLACED = re.compile(r"\.(step-\d{8,19})\.partial-\w+-replaced")
_NAME_BYTES = 100


def step_folder(directory: Path, step: int) -> Path:
    """The folder of the checkpoint after so many steps."""
    return directory / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The number of steps in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))


def step_folders(directory: Path) -> list[Path]:
    """The folders of checkpoints, oldest first; whether they are intact is not looked at."""
    if not directory.is_dir():
        return []
    folders = [
        path
        for path in directory.iterdir()
        if _STEP_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
    return sorted(folders, key=step_of)


def is_complete(folder: Path) -> bool:
    """Whether a folder has its manifest, which is written last."""
    return (folder / MANIFEST).is_file()


def mark_latest(directory: Path, folder: Path) -> None:
    """Names the newest checkpoint; called when its folder is complete and on disk."""
    replace_file(directory / _LATEST, f"{folder.name}\n".encode())


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that `latest` names; None where there is no `latest`.

    Raises:
        UserError: it names no checkpoint, or one that is not there.
    """
    latest = directory / _LATEST
    if not latest.is_file():
        return None
    with latest.open("rb") as file:
        name = file.read(_NAME_BYTES).decode("utf-8", errors="replace").strip()
    folder = directory / name
    if not _STEP_FOLDER.fullmatch(name) or not folder.is_dir():
        present = ", ".join(path.name for path in step_folders(directory)) or "none"
        raise UserError(f"{latest}: names {name!r}, which is no checkpoint here; there: {present}")
    return folder


def prune_checkpoints(directory: Path, *, keep: int) -> None:
    """Removes complete checkpoints but the newest `keep`, and what is incomplete and older.

    The one that `latest` names always stays. A folder loses its name first: one that a kill leaves
    half removed is not taken for a checkpoint.
    """
    folders = step_folders(directory)
    complete = [folder for folder in folders if is_complete(folder)]
    kept = {*complete[-keep:], latest_checkpoint(directory)}
    newest = step_of(complete[-1]) if complete else -1
    for folder in folders:
        if folder not in kept and step_of(folder) < newest:
            shutil.rmtree(folder.rename(partial_name(folder)))


def set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint, which no longer counts as one; returns the new folder."""
    for number in itertools.count():
        target = folder.with_name(f"damaged-{folder.name}" + (f"-{number}" if number else ""))
        if not target.exists():
            folder.rename(target)
            flush(folder.parent)
            return target
    raise AssertionError


def clear_leftovers(directory: Path) -> None:
    """Removes what killed processes left; nobody else may be writing here.

    A checkpoint that was about to be replaced, and whose replacement has not come, is put back.
    """
    for path in directory.glob(".step-*-replaced"):
        name = _REPLACED.fullmatch(path.name)
        if name is not None and not (directory / name[1]).exists():
            path.rename(directory / name[1])
            flush(directory)
    remove_partials(directory)
