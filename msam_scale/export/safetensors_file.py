"""Weights alone, by the model's own names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from msam_scale.export.trained_model import TrainedModel


def write_safetensors(trained: TrainedModel, folder: Path) -> None:
    """Writes `model.safetensors`, which `model.weights` takes; says in it what it is of."""
    weights = {
        # Of their own, since tied ones share memory, which the format refuses.
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in trained.model.state_dict().items()
    }
    section = trained.config.model
    metadata = {
        "format": "pt",
        "source": section.source,
        "name": str(section.name),
        "step": str(trained.step),
    }
    save_file(weights, folder / "model.safetensors", metadata=metadata)
