"""Everything in a checkpoint but the tensors."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from msam_scale import __version__
from msam_scale.checkpoint.errors import DamagedCheckpointError
from msam_scale.checkpoint.json_files import read_json
from msam_scale.checkpoint.manifest import Manifest, first_mistake
from msam_scale.config import Config

PROGRESS = "progress.json"


def versions() -> dict[str, str]:
    """Of what wrote a checkpoint."""
    return {
        "msam_scale": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


_COUNTERS = {"loss_scale", "hysteresis", "last_overflow", "step"}
Number = Annotated[int, Field(ge=0, lt=1 << 62)]
"""Of steps, samples or classes, which are counted in signed 64 bits."""


class Part(BaseModel):
    """A part of what a file says, which somebody may have changed: its types and ranges."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _those_of_a_loss_scale(counters: dict[str, float]) -> dict[str, float]:
    if counters and (counters.keys() != _COUNTERS or not counters["loss_scale"] > 0):
        raise ValueError(f"of a loss scale there are {', '.join(sorted(_COUNTERS))}, it above 0")
    return counters


class Progress(Part):
    """Where a run is.

    Random numbers have no state to save: they are functions of the seed in `config`, the step and
    the place in the mini-batch.

    Attributes:
        step: optimizer steps done.
        skipped_steps: those skipped, in all and in a row.
        optimizer: the class of the optimizer, which tells what its state means.
        counters: the loss scale and its age, where there is one.
        config: the resolved config.
        extra: what else belongs to the run: the place in the data, the model, what is due.
        versions: of what wrote it.
    """

    step: Number
    skipped_steps: list[Number] = Field(min_length=2, max_length=2)
    optimizer: str
    counters: Annotated[dict[str, float], AfterValidator(_those_of_a_loss_scale)]
    config: dict[str, Any]
    extra: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """Reads a checkpoint's, and makes sure that it is as it was written.

        Raises:
            DamagedCheckpointError: it, or the manifest, is missing or damaged.
        """
        Manifest.read(folder).verify_file(folder, PROGRESS)
        path = folder / PROGRESS
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise DamagedCheckpointError(f"{path}: damaged: {first_mistake(error)}") from error

    def resolved_config(self, folder: Path) -> Config:
        """The config as an object; settings that it lacks, being older, have their defaults.

        Raises:
            DamagedCheckpointError: it is none.
        """
        try:
            return Config.model_validate(self.config)
        except ValidationError as error:
            first = first_mistake(error)
            raise DamagedCheckpointError(f"{folder / PROGRESS}: its config: {first}") from error

    def to_bytes(self) -> bytes:
        """As it is written.

        Raises:
            TypeError: something in `extra` is not JSON.
        """
        return json.dumps(self.model_dump(), indent=2).encode()
