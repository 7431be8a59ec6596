"""A run's folder: what is in it already, whether to go on with it, and what to write first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data_pipelines.durable_files import remove_partial_directories, replace_file
from data_pipelines.errors import UserError
from msam_scale.checkpoint import find_checkpoint, latest_checkpoint, read_progress
from msam_scale.config import Config, load_config
from msam_scale.config.keys import all_keys, value_at

# What the result does not depend on, and may change on resume. Data are compared by fingerprint.
_FREE_SECTIONS = ("run.name", "run.dir", "data.", "sharding.", "checkpoint.", "monitor.")
_FREE_KEYS = (
    "batch.chunk",
    "objective.max_skipped_steps",
    "training.eval_every",
    "training.metrics",
)
_RESULT_KEYS = ("data.transform", "data.order", "data.on_error")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps everything.

    Attributes:
        path: `run.dir`/`run.name`.
        resume_from: the checkpoint to go on from, None for a fresh start.
    """

    path: Path
    resume_from: Path | None

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @classmethod
    def find(cls, config: Config, *, fingerprint: str | None) -> RunFolder:
        """Finds what `checkpoint.resume` asks for; writes nothing.

        Args:
            config: of the run that is about to start.
            fingerprint: of its training data, where that could be opened.

        Raises:
            UserError: the folder cannot be written or belongs to a run with another result, or
                `resume` cannot be met.
        """
        assert config.run.name is not None
        path = Path(config.run.dir).expanduser() / config.run.name
        _check_writable(path)
        settings, resume = path / "config.yaml", config.checkpoint.resume
        if resume == "never":
            if path.is_dir() and any(path.iterdir()):
                raise UserError(
                    f"{path} holds a run already, and checkpoint.resume: never would overwrite it; "
                    "choose another run.name, or remove the folder"
                )
            return cls(path=path, resume_from=None)
        if resume == "auto":
            checkpoint = latest_checkpoint(path / "checkpoints")
            if checkpoint is None and settings.is_file():
                _check_same_result(settings, load_config(settings).to_dict(), config)
        else:
            checkpoint = find_checkpoint(Path(resume).expanduser())
        if checkpoint is not None:
            progress = read_progress(checkpoint)
            _check_same_result(checkpoint, progress["config"], config)
            _check_same_data(checkpoint, progress["extra"], fingerprint)
        return cls(path=path, resume_from=checkpoint)

    def start(self, config: Config) -> IO[bytes]:
        """Takes the folder for this process and writes the config, every default filled in.

        Returns:
            The lock: the folder belongs to this process until it is closed.

        Raises:
            UserError: another process is training there.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = (self.path / ".lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(
                f"{self.path}: another process is training in this folder; "
                "choose another run.name, or wait for it"
            ) from None
        remove_partial_directories(self.checkpoints)
        replace_file(self.path / "config.yaml", config.to_yaml().encode())
        return lock


def _check_writable(path: Path) -> None:
    try:
        there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        usable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be a folder: {error}") from error
    if not usable:
        raise UserError(
            f"{path} cannot be made or written: {there} is no folder that may be written"
        )


def _check_same_result(source: Path, before: Mapping[str, Any], config: Config) -> None:
    # One that was saved before a setting existed has its default.
    before, now = Config.model_validate(before).to_dict(), config.to_dict()
    changes = [
        f"{key} was {value_at(before, key)!r} and is now {value_at(now, key)!r}"
        for key in all_keys()
        if _decides_the_result(key) and value_at(before, key) != value_at(now, key)
    ]
    if changes:
        raise UserError(
            f"{source} cannot be continued with another result: {'; '.join(changes)}; "
            "choose another run.name, or the settings of before"
        )


def _check_same_data(source: Path, extra: Mapping[str, Any], fingerprint: str | None) -> None:
    saved = extra.get("data_fingerprint")
    if None not in (saved, fingerprint) and saved != fingerprint:
        raise UserError(
            f"{source} was trained on other data: the fingerprint of data.train was "
            f"{str(saved)[:12]}… and is now {str(fingerprint)[:12]}…; choose another run.name"
        )


def _decides_the_result(key: str) -> bool:
    free = key.startswith(_FREE_SECTIONS) or key in _FREE_KEYS
    return key in _RESULT_KEYS or not free
