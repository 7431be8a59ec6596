"""What all sections share: strict types, no unknown keys, no change after loading."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

# Of Linux and macOS alike, but for a byte or two.
_NAME_BYTES, _PATH_BYTES = 255, 4095


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL character, which no name and no path has; leave it out")
    return text


def checked_path(text: str) -> str:
    """The path, if a file system can have it.

    Raises:
        ValueError: it cannot; says why.
    """
    path = os.fsencode(_without_nul(text))
    if len(path) > _PATH_BYTES or any(len(name) > _NAME_BYTES for name in path.split(b"/")):
        raise ValueError(
            f"is longer than a path can be: {_PATH_BYTES} bytes, and {_NAME_BYTES} between two "
            "slashes"
        )
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError("begins with the home of a user who is not there") from None
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(checked_path)]
Count = Annotated[int, Field(ge=1)]
Arguments = dict[str, JsonValue]


class Section(BaseModel):
    """One section of the config. The text under a field is its documentation everywhere."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
