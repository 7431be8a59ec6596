"""Small JSON files that may have been tampered with: bounded, and refused rather than followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msam_scale.checkpoint.errors import DamagedCheckpointError

# Far more than a checkpoint writes: a list of damaged samples is the longest part.
_MOST_BYTES = 256 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DamagedCheckpointError: there is no regular file, or it holds something else.
    """
    check_regular(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is larger than any that is written")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path}: damaged: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DamagedCheckpointError(f"{path}: damaged: no JSON object")
    return value


def check_regular(path: Path) -> None:
    """Refuses what is missing and what is no file of its own, such as a link to elsewhere.

    Raises:
        DamagedCheckpointError: says which.
    """
    if path.is_symlink():
        raise DamagedCheckpointError(f"{path}: a link, and checkpoints have none; refused")
    if not path.is_file():
        raise DamagedCheckpointError(f"{path}: damaged: it is missing")
