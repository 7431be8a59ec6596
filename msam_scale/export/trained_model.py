"""A model as a run has trained it, in this process, without the run's data or ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from data_pipelines.errors import UserError
from msam_scale.checkpoint import find_checkpoint, load_weights, read_progress
from msam_scale.config import Config, ConfigError
from msam_scale.models import ModelRequest, build_model
from msam_scale.precision import PRECISIONS


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint's model.

    Attributes:
        model: in evaluation mode, on the CPU, in the precision that was trained.
        config: the run's.
        step: optimizer steps done.
        checkpoint: the folder that it comes from.
    """

    model: nn.Module
    config: Config
    step: int
    checkpoint: Path


def load_trained_model(location: Path) -> TrainedModel:
    """Builds the model of a run or checkpoint and gives it the trained weights.

    Args:
        location: folder of a run, whose newest checkpoint counts, or of a checkpoint.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it does not say what model it is of.
    """
    inside = location / "checkpoints"
    checkpoint = find_checkpoint(inside if inside.is_dir() else location)
    progress = read_progress(checkpoint)
    config = _config_of(checkpoint, progress)
    task = progress["extra"].get("task")
    if task is None or config.model.name is None:
        raise UserError(
            f"{checkpoint}: does not say what model it is of; a checkpoint that `msam-scale train` "
            "has saved works"
        )
    settings = progress["extra"].get("model_settings")
    request = ModelRequest(
        str(config.model.name), arguments=config.model.args, settings=settings, **task
    )
    model = build_model(config.model.source, request, seed=config.run.seed)
    model.to(PRECISIONS[config.precision].parameters)
    load_weights(checkpoint, model)
    return TrainedModel(model.eval(), config, step=progress["step"], checkpoint=checkpoint)


def _config_of(checkpoint: Path, progress: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(progress["config"])
    except (ValueError, ConfigError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{checkpoint}: its config is damaged: {first}") from error
