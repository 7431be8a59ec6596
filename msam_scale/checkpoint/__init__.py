"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all."""

from msam_scale.checkpoint.folder import latest_checkpoint, prune_checkpoints, step_folder
from msam_scale.checkpoint.state import (
    find_checkpoint,
    load_checkpoint,
    load_weights,
    read_progress,
    save_checkpoint,
)

__all__ = [
    "find_checkpoint",
    "latest_checkpoint",
    "load_checkpoint",
    "load_weights",
    "prune_checkpoints",
    "read_progress",
    "save_checkpoint",
    "step_folder",
]
