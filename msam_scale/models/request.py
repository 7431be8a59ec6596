"""What every source of models is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelRequest:
    """A model by name, fitted to the data.

    Attributes:
        name: as the source spells it.
        kind: what the samples are: `images` or `text`.
        num_classes: outputs of the head.
        num_channels: channels of the input images; None for text.
        arguments: further keyword arguments of the model; they win over the fields above.
        pretrained: start from the weights that the source has for this name.
        weights: a safetensors file to start from; not beside `pretrained`.
        settings: of a transformers model, as a checkpoint keeps them; then nothing is looked up.
        anew: gets the names of the layers that the weights leave at their initial values.
        checkpoint: whose weights it will be given; one of another model is refused.
    """

    name: str
    num_classes: int
    num_channels: int | None = None
    kind: str = "images"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    weights: Path | None = None
    settings: Mapping[str, Any] | None = None
    anew: list[str] = field(default_factory=list, compare=False)
    checkpoint: Path | None = None

    def keywords(self, *, channels: str) -> dict[str, Any]:
        """The keyword arguments of the model.

        Args:
            channels: what the source calls the argument for `num_channels`.
        """
        return {
            "num_classes": self.num_classes,
            channels: self.num_channels,
            **self.arguments,
        }
