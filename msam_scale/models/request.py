"""What every source of models is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelRequest:
    """A model by name, fitted to the data.

    Attributes:
        name: as the source spells it.
        num_classes: outputs of the head.
        num_channels: channels of the input images.
        arguments: further keyword arguments of the model; they win over the fields above.
    """

    name: str
    num_classes: int
    num_channels: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
