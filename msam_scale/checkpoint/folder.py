"""Where checkpoints are: `step-00000123/` folders and a file `latest` that names one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from data_pipelines.durable_files import replace_file
from data_pipelines.errors import UserError

_LATEST = "latest"
_STEP_FOLDER = re.compile(r"step-(\d{8,})")


def step_folder(directory: Path, step: int) -> Path:
    """The folder of the checkpoint after so many steps."""
    return directory / f"step-{step:08d}"


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
    name = latest.read_text("utf-8").strip()
    folder = directory / name
    if not _STEP_FOLDER.fullmatch(name) or not folder.is_dir():
        present = ", ".join(path.name for path in _steps(directory)) or "none"
        raise UserError(f"{latest}: names {name!r}, which is no checkpoint here; there: {present}")
    return folder


def prune_checkpoints(directory: Path, *, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, never the one that `latest` names."""
    newest = latest_checkpoint(directory)
    for folder in _steps(directory)[:-keep]:
        if folder != newest:
            shutil.rmtree(folder)


def _steps(directory: Path) -> list[Path]:
    folders = [path for path in directory.iterdir() if _STEP_FOLDER.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))
