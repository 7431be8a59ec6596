"""Going on from a checkpoint: the newest one that is intact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import ConfigDict, Field, Json, JsonValue, ValidationError

from data_pipelines.errors import UserError
from data_pipelines.loading.state import LoaderState
from data_pipelines.preparation.record import TokenizerRecord
from msam_scale.checkpoint import (
    DamagedCheckpointError,
    Manifest,
    Progress,
    Shards,
    mark_latest,
    set_aside,
    step_folders,
)
from msam_scale.checkpoint.manifest import first_mistake
from msam_scale.checkpoint.progress import PROGRESS, Number, Part


class _Task(Part):
    kind: str
    num_classes: Annotated[int, Field(ge=1, lt=1 << 62)]
    num_channels: Annotated[int, Field(ge=1, lt=1 << 62)] | None


class _DataSet(Part):
    class_names: list[str] | None = None
    tokenizer: Json[TokenizerRecord] | None = None


class _LossSpikes(Part):
    losses: list[float]
    count: Number


class _Rollbacks(Part):
    total: Number
    in_a_row: Number


class _OfARun(Part):
    """What a training run keeps in `extra`; what it lacks is older."""

    model_config = ConfigDict(extra="ignore")

    data_fingerprint: str | None = None
    loader: LoaderState | None = None
    task: _Task | None = None
    data_set: _DataSet = _DataSet()
    model_settings: dict[str, JsonValue] | None = None
    loss_spikes: _LossSpikes | None = None
    due: tuple[Literal["evaluation", "sharpness"], ...] = Field((), strict=False)
    data_offset: Number = 0
    rollbacks: _Rollbacks | None = None


def check_checkpoint(folder: Path, *, with_tensors: bool = True) -> Progress:
    """Reads all of a run's checkpoint that is small: not the tensors, and no checksum of theirs.

    Args:
        folder: the checkpoint's.
        with_tensors: whether the headers of their files are read.

    Raises:
        DamagedCheckpointError: names the file, and what in it is not as a run writes it.
    """
    manifest = Manifest.read(folder)
    manifest.check_sizes(folder)
    progress = Progress.read(folder)
    path = folder / PROGRESS
    try:
        run = _OfARun.model_validate(progress.extra)
    except ValidationError as error:
        raise DamagedCheckpointError(f"{path}: damaged: extra.{first_mistake(error)}") from error
    if run.loader is not None and run.loader.step != progress.step + run.data_offset:
        raise DamagedCheckpointError(
            f"{path}: damaged: extra.loader.step: {run.loader.step} is not step {progress.step} "
            f"with extra.data_offset: {run.data_offset}"
        )
    if with_tensors:
        Shards(folder, manifest)
    return progress


class Loads(Protocol):
    """What is asked of an engine."""

    def load_checkpoint(self, location: str | Path) -> dict[str, Any]:
        """Goes on where a checkpoint was saved."""
        ...


@dataclass(frozen=True)
class Candidates:
    """The checkpoints that a run may go on from.

    Attributes:
        usable: newest first; empty for a fresh start.
        damaged: what is wrong with the others, by folder.
    """

    usable: tuple[Path, ...] = ()
    damaged: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def in_directory(cls, directory: Path) -> Candidates:
        """What `checkpoint.resume: auto` chooses from; looks at no tensor and no checksum of one.

        Raises:
            UserError: there are checkpoints, and none of them can be used.
        """
        usable: list[Path] = []
        damaged: dict[Path, str] = {}
        for folder in reversed(step_folders(directory)):
            try:
                check_checkpoint(folder, with_tensors=not usable)
            except DamagedCheckpointError as error:
                damaged[folder] = str(error)
            else:
                usable.append(folder)
        found = cls(tuple(usable), damaged)
        if damaged and not usable:
            raise found._exhausted()
        return found

    @property
    def newest(self) -> Path | None:
        """The one to go on from."""
        return self.usable[0] if self.usable else None

    def within(self, directory: Path) -> tuple[Path, ...]:
        """Those to go on from, newest first, where they are a run's own."""
        if self.newest is None or self.newest.resolve().parent != directory.resolve():
            return ()
        return self.usable

    def load(self, engine: Loads) -> tuple[dict[str, Any], Candidates]:
        """Has an engine take the newest that is as it was written. Collective.

        Returns:
            The `extra` that was saved with it, and the candidates without those that turned out
            damaged.

        Raises:
            UserError: none is intact, or it is of another model or optimizer.
        """
        candidates = self
        while (newest := candidates.newest) is not None:
            try:
                return engine.load_checkpoint(newest), candidates
            except DamagedCheckpointError as error:
                damaged = {**candidates.damaged, newest: str(error)}
                candidates = Candidates(candidates.usable[1:], damaged)
        raise candidates._exhausted()

    def put_in_order(self) -> list[str]:
        """Renames damaged checkpoints, so that nothing takes them for good ones.

        Returns:
            What to tell the user: the file of each that is damaged, and where it is now.
        """
        told = [
            f"passed over {folder.name}: {message}; it is kept as {set_aside(folder).name}"
            for folder, message in sorted(self.damaged.items(), reverse=True)
        ]
        if self.damaged and self.newest is not None:
            mark_latest(self.newest.parent, self.newest)
        return told

    def _exhausted(self) -> UserError:
        faults = "; ".join(message for _, message in sorted(self.damaged.items(), reverse=True))
        return UserError(
            f"no checkpoint of this run is intact: {faults}; choose another run.name to start "
            "anew, with the path of a checkpoint elsewhere as checkpoint.start_from if you like"
        )
