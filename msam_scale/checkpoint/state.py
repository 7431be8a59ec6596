"""What a checkpoint holds, and how it goes to disk and back."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from data_pipelines.durable_files import new_directory
from data_pipelines.errors import UserError
from msam_scale.checkpoint.folder import latest_checkpoint, mark_latest, step_folder
from msam_scale.config import Config
from msam_scale.optimization import SkippedSteps
from msam_scale.ranks import Ranks
from msam_scale.sharding import Sharding

_MODEL, _OPTIMIZER, _PROGRESS = "model.safetensors", "optimizer.safetensors", "progress.json"
_FORMAT = {"format": "msam_scale checkpoint", "version": 1}
_PARTS = {"step", "skipped_steps", "optimizer", "counters", "config", "extra"}


class Checkpointable(Protocol):
    """The parts of an engine, beside its sharding, that a checkpoint saves and restores."""

    config: Config
    ranks: Ranks
    num_steps_done: int
    skipped_steps: SkippedSteps
    whole_state: Mapping[str, torch.Tensor]


def save_checkpoint(
    engine: Checkpointable,
    sharding: Sharding,
    directory: str | Path,
    *,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Saves after the last step done, at any layout for any layout. Collective.

    Args:
        engine: between two steps.
        sharding: the engine's; hands out whole tensors on rank 0.
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
    weights = sharding.full_state_dict(first_rank_only=True)
    optimizer_state = sharding.full_optimizer_state()
    progress = {
        **_FORMAT,
        "step": engine.num_steps_done,
        "skipped_steps": engine.skipped_steps.state(),
        "optimizer": optimizer_name(sharding),
        "counters": sharding.counters(),
        "config": engine.config.to_dict(),
        "extra": dict(extra or {}),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }

    def write() -> None:
        with new_directory(folder, replaces=True) as partial:
            save_file(_unshared(weights), partial / _MODEL)
            save_file(optimizer_state, partial / _OPTIMIZER)
            (partial / _PROGRESS).write_text(json.dumps(progress, indent=2), "utf-8")
        mark_latest(directory, folder)

    engine.ranks.on_first(write)
    return folder


def load_checkpoint(
    engine: Checkpointable, sharding: Sharding, location: str | Path
) -> dict[str, Any]:
    """Puts engine, optimizer and counters where they were when the checkpoint was saved.

    Args:
        engine: of the same model and optimizer, at any layout.
        sharding: the engine's; takes the parts that its layout puts on this rank.
        location: a checkpoint's folder, or a directory whose `latest` names one.

    Returns:
        The `extra` that was saved.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it is of another model or optimizer.
    """
    folder = find_checkpoint(location)
    progress = read_progress(folder)
    if progress["optimizer"] != optimizer_name(sharding):
        raise UserError(
            f"{folder}: was saved with {progress['optimizer']}, but the engine has "
            f"{optimizer_name(sharding)}; the optimizer of before works"
        )
    weights, optimizer_state = _Tensors(folder / _MODEL), _Tensors(folder / _OPTIMIZER)
    _check_names(weights, expected=engine.whole_state)
    try:
        sharding.load(weights, optimizer_state)
    except UserError as error:
        raise UserError(f"{folder / _OPTIMIZER}: {error}") from error
    sharding.load_counters(progress["counters"])
    engine.num_steps_done = progress["step"]
    engine.skipped_steps.load(progress["skipped_steps"])
    return dict(progress["extra"])


def load_weights(folder: Path, model: nn.Module) -> None:
    """Gives a whole model the weights of a checkpoint, in this process alone.

    Raises:
        UserError: they cannot be read, or are of another model.
    """
    path = folder / _MODEL
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: does not fit the run's model: {first}") from error


def optimizer_name(sharding: Sharding) -> str:
    """The class of the optimizer, which tells what its state means."""
    return type(sharding.optimizer).__name__


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


class _Tensors(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            self._names = dict.fromkeys(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def kind(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a tensor, without reading it."""
        part = self._file.get_slice(name)
        shape = tuple(part.get_shape())
        return (part[:0].dtype if shape else self[name].dtype), shape


def _check_names(weights: _Tensors, *, expected: Mapping[str, torch.Tensor]) -> None:
    missing, unknown = (
        sorted(expected.keys() - weights.keys()),
        sorted(weights.keys() - expected.keys()),
    )
    if missing or unknown:
        raise UserError(
            f"{weights.path}: of another model: misses {missing[:3] or 'nothing'} and has "
            f"{unknown[:3]} besides ({len(missing)} and {len(unknown)} in all)"
        )
    for name, tensor in expected.items():
        dtype, shape = weights.kind(name)
        if shape != tuple(tensor.shape) or dtype != tensor.dtype:
            raise UserError(
                f"{weights.path}: {name} is {dtype} {shape}, but the model's is {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # safetensors refuses tensors that share memory and those that are not contiguous.
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
