"""What a family of models is to the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BATCH_SIZE = 8
MICRO_BATCHES = 2
WHOLE = BATCH_SIZE // MICRO_BATCHES
NUM_CLASSES = 5

Batch = Any
"""Images and labels, or a dict of tensors that the model's forward takes."""


@dataclass(frozen=True)
class Family:
    """A small model of a family, and batches for it.

    Attributes:
        library: `timm` or `transformers`.
        name: timm's module, or transformers' model type.
        model: what was built, by the name that its library knows.
        build: builds it with the weights that torch's global generator gives.
        batch: the mini-batch of a step, `BATCH_SIZE` samples.
        weight: what the mean loss of some samples counts for.
        chunk: samples of one forward of the engine, which batch norms normalise together. All of a
            micro-batch where the loss compares its samples, or batch norms see a vector a sample.
    """

    library: str
    name: str
    model: str
    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    weight: Callable[[Batch], float]
    chunk: int = 2

    @property
    def id(self) -> str:
        """Unique among all families."""
        return f"{self.library}-{self.name}"
