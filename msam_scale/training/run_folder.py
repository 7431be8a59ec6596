"""A run's folder: what is in it already, whether to go on with it, and what to write first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.durable_files import replace_file
from data_pipelines.errors import UserError
from msam_scale.checkpoint import find_checkpoint, latest_checkpoint, read_progress
from msam_scale.config import Config

# What the result depends on; all else (chunks, workers, ranks, reports) may change on resume.
_RESULT_KEYS = (
    "run.seed",
    "model",
    "data.transform",
    "data.order",
    "objective",
    "batch.size",
    "batch.norm_samples",
    "optimizer",
    "schedule",
    "training.epochs",
    "training.steps",
    "training.label_smoothing",
    "precision",
)


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps everything.

    Attributes:
        path: `run.dir`/`run.name`.
        resume_from: the checkpoint to go on from, None for a fresh start.
        num_steps_done: steps that it holds.
    """

    path: Path
    resume_from: Path | None
    num_steps_done: int

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
            UserError: the folder belongs to a run with another result, or `resume` cannot be met.
        """
        assert config.run.name is not None
        path = Path(config.run.dir) / config.run.name
        resume = config.checkpoint.resume
        if resume in ("auto", "never"):
            checkpoint = latest_checkpoint(path / "checkpoints")
            if resume == "never" and (path / "config.yaml").exists():
                raise UserError(
                    f"{config.run.name}: {path} holds a run already, and checkpoint.resume: never "
                    "would overwrite it; choose another run.name, or remove the folder"
                )
        else:
            checkpoint = find_checkpoint(resume)
        if checkpoint is None:
            return cls(path=path, resume_from=None, num_steps_done=0)
        progress = read_progress(checkpoint)
        _check_same_result(checkpoint, progress, config, fingerprint=fingerprint)
        return cls(path=path, resume_from=checkpoint, num_steps_done=progress["step"])

    def start(self, config: Config) -> None:
        """Makes the folder and writes the config with every default filled in."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / "config.yaml", config.to_yaml().encode())


def _check_same_result(
    checkpoint: Path, progress: dict[str, Any], config: Config, *, fingerprint: str | None
) -> None:
    before, now = progress["config"], config.to_dict()
    changes = [
        f"{key} was {_at(before, key)!r} and is now {_at(now, key)!r}"
        for key in _RESULT_KEYS
        if _at(before, key) != _at(now, key)
    ]
    saved = progress["extra"].get("data_fingerprint")
    if fingerprint is not None and saved not in (None, fingerprint):
        changes.append(
            f"data.train was {saved[:12]}… and is now {fingerprint[:12]}… (fingerprints)"
        )
    if changes:
        raise UserError(
            f"{config.run.name}: {checkpoint} cannot be continued with another result: "
            f"{'; '.join(changes)}; choose another run.name, or the settings of before"
        )


def _at(values: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return values.get(section) if not name else values.get(section, {}).get(name)
