"""A model as a run has trained it, in this process, without the run's data or ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data_pipelines.errors import UserError
from data_pipelines.preparation.record import TokenizerRecord
from msam_scale.checkpoint import find_checkpoint, load_weights
from msam_scale.config import Config
from msam_scale.models import ModelRequest, build_model
from msam_scale.precision import PRECISIONS
from msam_scale.training.resuming import check_checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint's model.

    Attributes:
        model: in evaluation mode, on the CPU, in the precision that was trained.
        config: the run's.
        step: optimizer steps done.
        checkpoint: the folder that it comes from.
        class_names: of the data, where they are known.
        tokenizer: what made the tokens of the data, where they are text.
    """

    model: nn.Module
    config: Config
    step: int
    checkpoint: Path
    class_names: tuple[str, ...] | None = None
    tokenizer: TokenizerRecord | None = None


def load_trained_model(location: Path, *, averaged: bool = False) -> TrainedModel:
    """Builds the model of a run or checkpoint and gives it the trained weights.

    Args:
        location: folder of a run, whose newest checkpoint counts, or of a checkpoint.
        averaged: the average of the weights is wanted, which `training.ema` keeps.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it does not say what model it is of.
    """
    inside = location / "checkpoints"
    checkpoint = find_checkpoint(inside if inside.is_dir() else location)
    progress = check_checkpoint(checkpoint)
    config = progress.resolved_config(checkpoint)
    task = progress.extra.get("task")
    if task is None or config.model.name is None:
        raise UserError(
            f"{checkpoint}: does not say what model it is of; a checkpoint that `msam-scale train` "
            "has saved works"
        )
    settings = progress.extra.get("model_settings")
    request = ModelRequest(
        str(config.model.name),
        arguments=config.model.args,
        settings=settings,
        checkpoint=checkpoint,
        **task,
    )
    model = build_model(config.model.source, request, seed=config.run.seed)
    model.to(PRECISIONS[config.precision].parameters)
    load_weights(checkpoint, model, averaged=averaged)
    data_set = progress.extra.get("data_set") or {}
    names, tokenizer = data_set.get("class_names"), data_set.get("tokenizer")
    return TrainedModel(
        model.eval(),
        config,
        step=progress.step,
        checkpoint=checkpoint,
        class_names=None if names is None else tuple(names),
        tokenizer=None if tokenizer is None else TokenizerRecord.model_validate_json(tokenizer),
    )
