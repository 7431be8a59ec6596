"""`sharding.deepspeed` as the path of a file: its content takes the path's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msam_scale.config.problems import ConfigError, Problem
from msam_scale.config.reading import Document, read_document
from msam_scale.config.sections.base import checked_path

_SETTING = "sharding.deepspeed"


def read_section_file(document: Document) -> list[Problem]:
    """Reads the file that `sharding.deepspeed` names, so that the config holds all it says.

    A relative path is looked for beside the config first, then where the command is started.

    Args:
        document: changed in place where it names a file that can be read.

    Returns:
        What is wrong with the file.
    """
    sharding: Any = document.values.get("sharding")
    named = sharding.get("deepspeed") if isinstance(sharding, dict) else None
    try:
        if not isinstance(named, str) or not checked_path(named):
            return []
    except ValueError:
        return []  # refused with all other settings
    beside = (document.folder or Path()) / Path(named).expanduser()
    path = beside if beside.exists() else Path(named).expanduser()
    try:
        sharding["deepspeed"] = read_document(path).values
    except ConfigError as error:
        # One problem, with the file as its source.
        return [Problem(_SETTING, f"{one.source}: {one.message}") for one in error.problems]
    return []
