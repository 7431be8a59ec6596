"""Weights for other programs: a file a format, one line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msam_scale.export.safetensors_file import write_safetensors
from msam_scale.export.timm_folder import write_timm
from msam_scale.export.trained_model import TrainedModel, load_trained_model
from msam_scale.export.transformers_folder import write_tokenizer, write_transformers

__all__ = ["EXPORT_FORMATS", "TrainedModel", "load_trained_model", "write_tokenizer"]

EXPORT_FORMATS: dict[str, Callable[[TrainedModel, Path], None]] = {
    "safetensors": write_safetensors,
    "timm": write_timm,
    "transformers": write_transformers,
}
"""By format: writes a trained model into an empty folder, or raises UserError."""
