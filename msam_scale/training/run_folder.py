"""A run's folder: what is in it already, whether to go on with it, and what to write first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data_pipelines.durable_files import remove_partials, replace_file
from data_pipelines.errors import UserError
from msam_scale.checkpoint import (
    Progress,
    clear_leftovers,
    find_checkpoint,
    step_folders,
)
from msam_scale.config import Config
from msam_scale.config.keys import all_keys, value_at
from msam_scale.training.resuming import Candidates, check_checkpoint

# What the result does not depend on, and may change on resume. Data are compared by fingerprint.
# What numbers that are not finite lead to is free, too: a run that met them is to be mended.
_FREE_SECTIONS = ("run.name", "run.dir", "data.", "sharding.", "checkpoint.", "monitor.", "faults.")
_FREE_KEYS = (
    "batch.check_split",
    "batch.chunk",
    "objective.non_finite",
    "objective.max_skipped_steps",
    "objective.max_rollbacks",
    "training.activation_checkpointing",
    "training.compile",
    "training.eval_every",
    "training.metrics",
)
# May grow, which `_check_same_result` sees to.
_LENGTH_KEYS = ("training.epochs", "training.steps")
_RESULT_KEYS = ("data.transform", "data.order", "data.on_error")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps everything.

    Attributes:
        path: `run.dir`/`run.name`.
        candidates: the checkpoints to go on from, none for a fresh start.
        start_from: of another run, the checkpoint to start from; None where the run goes on.
        num_steps_before: the length of the run before, where it goes on and is now longer.
        found: its checkpoints when it was looked at.
    """

    path: Path
    candidates: Candidates
    start_from: Path | None = None
    num_steps_before: int | None = None
    found: tuple[Path, ...] = ()

    @property
    def resume_from(self) -> Path | None:
        """The checkpoint to go on from, if it turns out intact; None for a fresh start."""
        return self.candidates.newest

    @property
    def weights_from(self) -> Path | None:
        """The checkpoint that the weights come from, of this run or of another."""
        return self.resume_from or self.start_from

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @classmethod
    def find(
        cls, config: Config, *, fingerprint: str | None, steps_per_epoch: int | None
    ) -> RunFolder:
        """Finds what the `checkpoint` section asks for; writes nothing.

        A folder belongs to a run from its first checkpoint on: before it there is nothing to lose.

        Args:
            config: of the run that is about to start.
            fingerprint: of its training data, where that could be opened.
            steps_per_epoch: of the same.

        Raises:
            UserError: the folder cannot be written or belongs to a run with another result, or
                `resume` or `start_from` cannot be met.
        """
        assert config.run.name is not None
        path = Path(config.run.dir).expanduser() / config.run.name
        _check_writable(path)
        checkpoints, section = path / "checkpoints", config.checkpoint
        if section.resume == "never" and step_folders(checkpoints):
            raise UserError(
                f"{path} holds a run already, and checkpoint.resume: never would overwrite it; "
                "choose another run.name, or remove the folder"
            )
        found = tuple(step_folders(checkpoints))
        candidates = Candidates.in_directory(checkpoints)
        if (checkpoint := candidates.newest) is None:
            source = None if section.start_from is None else _checkpoint_of(section.start_from)
            return cls(path, candidates, start_from=source, found=found)
        progress = Progress.read(checkpoint)
        _check_same_data(checkpoint, progress.extra, fingerprint)
        before = progress.resolved_config(checkpoint)
        length, length_before = (
            one.training.num_steps(steps_per_epoch) for one in (config, before)
        )
        is_longer = length is not None and length_before is not None and length > length_before
        _check_same_result(checkpoint, before, config, may_differ=_LENGTH_KEYS * is_longer)
        before_now = length_before if is_longer else None
        return cls(path, candidates, num_steps_before=before_now, found=found)

    def start(self, config: Config) -> IO[bytes]:
        """Takes the folder for this process and writes the config, every default filled in.

        Returns:
            The lock: the folder belongs to this process until it is closed.

        Raises:
            UserError: another process is training there, or has since the folder was looked at.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            lock = opened.enter_context((self.path / ".lock").open("ab"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: another process is training in this folder; "
                    "choose another run.name, or wait for it"
                ) from None
            if tuple(step_folders(self.checkpoints)) != self.found:
                raise UserError(
                    f"{self.path}: another process has trained in this folder while this one was "
                    "starting; start again to go on from there"
                )
            clear_leftovers(self.checkpoints)
            remove_partials(self.path)
            replace_file(self.path / "config.yaml", config.to_yaml().encode())
            opened.pop_all()
            return lock

    def is_still(self, taken: os.stat_result) -> bool:
        """Whether the folder is the one that was taken: neither removed nor renamed since."""
        try:
            return os.path.samestat(taken, self.path.stat())
        except OSError:
            return False


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


def _checkpoint_of(location: str) -> Path:
    """The checkpoint that `checkpoint.start_from` names: its folder, a run's, or that of several.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(location).expanduser()
    inside = path / "checkpoints"
    try:
        found = find_checkpoint(inside if inside.is_dir() else path)
        check_checkpoint(found)
    except UserError as error:
        raise UserError(f"checkpoint.start_from: {error}") from error
    return found


def _check_same_result(
    source: Path, before: Config, config: Config, *, may_differ: tuple[str, ...]
) -> None:
    old, now = before.to_dict(), config.to_dict()
    changes = [
        f"{key} was {value_at(old, key)!r} and is now {value_at(now, key)!r}"
        for key in all_keys()
        if _decides_the_result(key)
        and key not in may_differ
        and value_at(old, key) != value_at(now, key)
    ]
    if changes:
        raise UserError(
            f"{source} cannot be continued with another result: {'; '.join(changes)}; "
            f"choose another run.name (checkpoint.start_from: {source} starts it from these "
            "weights), or the settings of before; training.epochs or steps may grow"
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
