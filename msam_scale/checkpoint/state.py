"""What a checkpoint holds, and how it goes to disk and back."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from data_pipelines.durable_files import new_directory
from data_pipelines.errors import UserError
from msam_scale.checkpoint.folder import latest_checkpoint, mark_latest, step_folder
from msam_scale.checkpoint.optimizer_state import optimizer_tensors, restore_optimizer
from msam_scale.config import Config
from msam_scale.optimization import SkippedSteps
from msam_scale.ranks import Ranks

_MODEL, _OPTIMIZER, _PROGRESS = "model.safetensors", "optimizer.safetensors", "progress.json"
_FORMAT = {"format": "msam_scale checkpoint", "version": 1}
_PARTS = {"step", "skipped_steps", "optimizer", "config", "extra"}


class Checkpointable(Protocol):
    """The parts of an engine that a checkpoint saves and restores."""

    module: nn.Module
    config: Config
    ranks: Ranks
    num_steps_done: int
    skipped_steps: SkippedSteps

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, whose state belongs to the checkpoint."""
        ...

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Whole parameters and buffers as CPU tensors."""
        ...


def save_checkpoint(
    engine: Checkpointable, directory: str | Path, *, extra: Mapping[str, Any] | None = None
) -> Path:
    """Saves after the last step done, at any layout for any layout. Collective.

    Args:
        engine: between two steps.
        directory: gets a folder `step-…`, in place of an earlier one of this step, and the file
            `latest`.
        extra: what else belongs to the run (JSON), given back by `load_checkpoint`.

    Returns:
        The checkpoint's folder, complete and on disk.

    Raises:
        UserError: the file system refuses, on all ranks alike; what was there is still there.
    """
    directory = Path(directory)
    folder = step_folder(directory, engine.num_steps_done)
    weights = engine.full_state_dict()
    progress = {
        **_FORMAT,
        "step": engine.num_steps_done,
        "skipped_steps": engine.skipped_steps.state(),
        "optimizer": type(engine.optimizer).__name__,
        "config": engine.config.to_dict(),
        "extra": dict(extra or {}),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }

    def write() -> None:
        with new_directory(folder, replaces=True) as partial:
            save_file(_unshared(weights), partial / _MODEL)
            save_file(optimizer_tensors(engine.optimizer, engine.module), partial / _OPTIMIZER)
            (partial / _PROGRESS).write_text(json.dumps(progress, indent=2), "utf-8")
        mark_latest(directory, folder)

    engine.ranks.on_first(write)
    return folder


def load_checkpoint(engine: Checkpointable, location: str | Path) -> dict[str, Any]:
    """Puts engine, optimizer and counters where they were when the checkpoint was saved.

    Args:
        engine: of the same model and optimizer, at any layout.
        location: a checkpoint's folder, or a directory whose `latest` names one.

    Returns:
        The `extra` that was saved.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it is of another model or optimizer.
    """
    folder = find_checkpoint(location)
    progress = read_progress(folder)
    if progress["optimizer"] != type(engine.optimizer).__name__:
        raise UserError(
            f"{folder}: was saved with {progress['optimizer']}, but the engine has "
            f"{type(engine.optimizer).__name__}; the optimizer of before works"
        )
    weights = _read_tensors(folder / _MODEL)
    own = engine.module.state_dict()
    _check_names(folder / _MODEL, found=weights, expected=own)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    restore_optimizer(
        engine.optimizer, engine.module, _read_tensors(folder / _OPTIMIZER), folder / _OPTIMIZER
    )
    engine.num_steps_done = progress["step"]
    engine.skipped_steps.load(progress["skipped_steps"])
    return dict(progress["extra"])


def find_checkpoint(location: str | Path) -> Path:
    """The checkpoint at `location`, or the one that its `latest` names."""
    location = Path(location)
    folder = location if (location / _PROGRESS).is_file() else None
    if folder is None and location.is_dir():
        folder = latest_checkpoint(location)
    if folder is None:
        raise UserError(
            f"{location}: no checkpoint here; a folder step-… or one with `latest` works"
        )
    return folder


def read_progress(folder: Path) -> dict[str, Any]:
    """Everything but the tensors: step, counters, config, extra.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    path = folder / _PROGRESS
    try:
        progress = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a checkpoint: {error}") from error
    if not isinstance(progress, dict) or not _FORMAT.items() <= progress.items():
        raise UserError(f"{path}: not a checkpoint of version {_FORMAT['version']}")
    if missing := _PARTS - progress.keys():
        raise UserError(f"{path}: damaged: it lacks {', '.join(sorted(missing))}")
    return progress


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _check_names(
    path: Path, *, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    missing, unknown = (
        sorted(expected.keys() - found.keys()),
        sorted(found.keys() - expected.keys()),
    )
    if missing or unknown:
        raise UserError(
            f"{path}: of another model: misses {missing[:3] or 'nothing'} and has {unknown[:3]} "
            f"besides ({len(missing)} and {len(unknown)} in all)"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise UserError(
                f"{path}: {name} is {found[name].dtype} {tuple(found[name].shape)}, but the "
                f"model's is {tensor.dtype} {tuple(tensor.shape)}"
            )


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # safetensors refuses tensors that share memory and those that are not contiguous.
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
