"""What all sections share: strict types, no unknown keys, no change after loading."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Text = Annotated[str, Field(min_length=1)]
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
