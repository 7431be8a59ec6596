"""What a checkpoint holds, taken from an engine and given back to one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.checkpoint.commit import verify_together
from msam_scale.checkpoint.errors import DamagedCheckpointError
from msam_scale.checkpoint.folder import MANIFEST, latest_checkpoint
from msam_scale.checkpoint.manifest import Manifest
from msam_scale.checkpoint.progress import Progress, versions
from msam_scale.checkpoint.shard_files import SUFFIX
from msam_scale.checkpoint.shards import Shards, TensorsUnder
from msam_scale.checkpoint.snapshot import Snapshot
from msam_scale.config import Config
from msam_scale.optimization import SkippedSteps
from msam_scale.ranks import Ranks
from msam_scale.sharding import Sharding
from msam_scale.sharding.pieces import MODEL, OPTIMIZER, Piece
from msam_scale.sharding.state import STATE_SEPARATOR, kept_shapes
from msam_scale.weight_average import WeightAverage

AVERAGE = "average/"
_logger = logging.getLogger("msam_scale")


class Checkpointable(Protocol):
    """The parts of an engine, beside its sharding, that a checkpoint saves and restores."""

    config: Config
    ranks: Ranks
    num_steps_done: int
    skipped_steps: SkippedSteps
    average: WeightAverage | None
    whole_state: Mapping[str, torch.Tensor]
    never_finite: frozenset[str]


def snapshot_of(
    engine: Checkpointable,
    sharding: Sharding,
    *,
    directory: str | Path,
    extra: Mapping[str, Any] | None = None,
    keep: int | None = None,
) -> Snapshot:
    """The state after the last step done, in live memory. Collective.

    Args:
        engine: between two steps.
        sharding: the engine's.
        directory: where checkpoints are.
        extra: what else belongs to the run (JSON), given back by `load_checkpoint`.
        keep: how many complete checkpoints stay; None, the default: all.
    """
    progress = Progress(
        step=engine.num_steps_done,
        skipped_steps=engine.skipped_steps.state(),
        optimizer=optimizer_name(sharding),
        counters=sharding.counters(),
        config=engine.config.to_dict(),
        extra=dict(extra or {}),
        versions=versions(),
    )
    progress.to_bytes()  # what is no JSON is found here, on every rank
    pieces = [*sharding.model_pieces(), *sharding.optimizer_pieces()]
    if engine.average is not None:
        pieces += _averaged_pieces(engine.average, sharding)
    never_finite = frozenset(
        prefix + name for prefix in (MODEL, AVERAGE) for name in engine.never_finite
    )
    return Snapshot(Path(directory), progress, pieces, keep=keep, never_finite=never_finite)


def load_checkpoint(
    engine: Checkpointable, sharding: Sharding, location: str | Path
) -> dict[str, Any]:
    """Puts engine, optimizer and counters where they were when it was saved. Collective.

    Args:
        engine: of the same model and optimizer, at any layout.
        sharding: the engine's; takes the parts that its layout puts on this rank.
        location: a checkpoint's folder, or a directory whose `latest` names one.

    Returns:
        The `extra` that was saved.

    Raises:
        DamagedCheckpointError: a file of it is not as it was written; nothing has changed.
        UserError: there is no checkpoint, or it is of another model or optimizer.
    """
    shards, progress = _opened(engine, sharding, location)
    _load_average(engine, sharding, shards)
    _load_tensors(sharding, shards)
    sharding.load_counters(progress.counters)
    engine.num_steps_done = progress.step
    engine.skipped_steps.load(progress.skipped_steps)
    return dict(progress.extra)


def start_from_checkpoint(engine: Checkpointable, sharding: Sharding, location: str | Path) -> None:
    """Gives an engine the weights and optimizer state of a checkpoint, and no more. Collective.

    Args:
        engine: as for `load_checkpoint`.
        sharding: as for `load_checkpoint`.
        location: as for `load_checkpoint`.

    Raises:
        UserError: as `load_checkpoint`.
    """
    shards, _ = _opened(engine, sharding, location)
    _load_tensors(sharding, shards)
    if engine.average is not None:
        engine.average.copy_from_weights()


def _opened(
    engine: Checkpointable, sharding: Sharding, location: str | Path
) -> tuple[Shards, Progress]:
    """A checkpoint that is whole, and of the engine's model and optimizer. Collective."""
    folder = find_checkpoint(location)
    manifest = verify_together(folder, engine.ranks)
    progress = Progress.read(folder)
    if progress.optimizer != optimizer_name(sharding):
        raise UserError(
            f"{folder}: was saved with {progress.optimizer}, but the engine has "
            f"{optimizer_name(sharding)}; the optimizer of before works"
        )
    shards = Shards(folder, manifest)
    check_names(shards.under(MODEL), expected=engine.whole_state)
    _check_optimizer_state(
        shards.under(OPTIMIZER), optimizer=sharding.optimizer, weights=engine.whole_state
    )
    return shards, progress


def _load_tensors(sharding: Sharding, shards: Shards) -> None:
    try:
        sharding.load(shards.under(MODEL), shards.under(OPTIMIZER))
    except UserError as error:
        raise UserError(f"{shards.folder}: {error}") from error


def _load_average(engine: Checkpointable, sharding: Sharding, shards: Shards) -> None:
    """By way of the model, whose own weights are loaded afterwards."""
    averaged = shards.under(AVERAGE)
    if engine.average is None:
        if averaged:
            _logger.warning(
                "%s: its averaged weights are left out: training.ema is null", shards.folder
            )
        return
    engine.average.check_outside("load_checkpoint")
    if not averaged:
        raise UserError(
            f"{shards.folder}: holds no average of the weights; training.ema: null, as when it was "
            "saved, works"
        )
    check_names(averaged, expected=engine.whole_state)
    sharding.load(averaged, None)
    engine.average.copy_from_weights()


def read_weights(folder: Path, *, averaged: bool = False, verifies: bool = True) -> TensorsUnder:
    """The weights of a checkpoint, in this process alone, each read when it is asked for.

    Args:
        folder: the checkpoint's.
        averaged: their average is wanted, which `training.ema` keeps.
        verifies: whether the files are read through first; for names and shapes they need not.

    Raises:
        DamagedCheckpointError: a file with tensors is not as it was written.
        UserError: there is no average.
    """
    manifest = Manifest.read(folder)
    manifest.check_sizes(folder)
    if verifies:
        for name in manifest.files:
            if name.endswith(SUFFIX):
                manifest.verify_file(folder, name)
    weights = Shards(folder, manifest).under(AVERAGE if averaged else MODEL)
    if not weights:
        raise UserError(f"{folder}: holds no averaged weights; a run with training.ema keeps them")
    return weights


def load_weights(folder: Path, model: nn.Module, *, averaged: bool = False) -> None:
    """Gives a whole model the weights of a checkpoint, in this process alone.

    Args:
        folder: the checkpoint's.
        model: in one process.
        averaged: their average is wanted, which `training.ema` keeps.

    Raises:
        UserError: they cannot be read, or are of another model.
    """
    weights = read_weights(folder, averaged=averaged)
    check_names(weights, expected=model.state_dict(), types=False)
    model.load_state_dict(dict(weights))


def optimizer_name(sharding: Sharding) -> str:
    """The class of the optimizer, which tells what its state means."""
    return type(sharding.optimizer).__name__


def find_checkpoint(location: str | Path) -> Path:
    """The checkpoint at `location`, or the one that its `latest` names."""
    location = Path(location)
    folder = location if (location / MANIFEST).is_file() else None
    if folder is None and location.is_dir():
        folder = latest_checkpoint(location)
    if folder is None:
        raise UserError(
            f"{location}: no checkpoint here; a folder step-… or one with `latest` works"
        )
    return folder


def _averaged_pieces(average: WeightAverage, sharding: Sharding) -> list[Piece]:
    """The model as it is with the average, copied while it has it. Collective."""
    with average.in_the_model():
        return [
            replace(
                piece,
                name=AVERAGE + piece.name.removeprefix(MODEL),
                values=piece.values.to("cpu", copy=True),
            )
            for piece in sharding.model_pieces()
        ]


def check_names(
    weights: TensorsUnder, *, expected: Mapping[str, torch.Tensor], types: bool = True
) -> None:
    """Compares names, shapes and, if asked for, types of saved weights with a model's.

    Raises:
        UserError: they are of another model; names the first that differs.
    """
    missing, unknown = (
        sorted(expected.keys() - weights.keys()),
        sorted(weights.keys() - expected.keys()),
    )
    if missing or unknown:
        raise UserError(
            f"{weights.folder}: of another model: misses {missing[:3] or 'nothing'} and has "
            f"{unknown[:3]} besides ({len(missing)} and {len(unknown)} in all)"
        )
    for name, tensor in expected.items():
        dtype, shape = weights.dtype(name), weights.shape(name)
        if shape != tensor.shape or (types and dtype != tensor.dtype):
            raise UserError(
                f"{weights.folder}: {name} is {dtype} {tuple(shape)}, but the model's is "
                f"{tensor.dtype} {tuple(tensor.shape)}"
            )


def _check_optimizer_state(
    saved: TensorsUnder, *, optimizer: torch.optim.Optimizer, weights: Mapping[str, torch.Tensor]
) -> None:
    """Refuses a state of other parts or shapes than the optimizer keeps; only torch's can tell."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for entry in saved:
        name, _, key = entry.rpartition(STATE_SEPARATOR)
        parts.setdefault(name, {})[key] = tuple(saved.shape(entry))
        if not saved.dtype(entry).is_floating_point:
            raise UserError(f"{saved.folder}: {OPTIMIZER + entry!r} is of {saved.dtype(entry)}")
    if not f"{type(optimizer).__module__}.".startswith("torch.optim."):
        return
    for name in parts.keys() & weights.keys():
        expected = list(kept_shapes(optimizer, weights[name].shape))
        if expected and parts[name] not in expected:
            raise UserError(
                f"{saved.folder}: {OPTIMIZER}{name} has {parts[name]}, and "
                f"{type(optimizer).__name__} keeps {expected[0]}"
            )


def faults_of(folder: Path) -> Iterator[str]:
    """Everything that is wrong with a checkpoint, a line each, file by file."""
    try:
        manifest = Manifest.read(folder)
    except DamagedCheckpointError as error:
        yield str(error)
        return
    num_faults = 0
    for name in sorted(manifest.files):
        try:
            manifest.verify_file(folder, name)
        except DamagedCheckpointError as error:
            num_faults += 1
            yield str(error)
    if not num_faults:  # what was written may still be no checkpoint
        try:
            Progress.read(folder).resolved_config(folder)
            Shards(folder, manifest)
        except DamagedCheckpointError as error:
            yield str(error)
