"""A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import save_for_hf

from data_pipelines import transform_preset
from data_pipelines.errors import UserError
from msam_scale.export.trained_model import TrainedModel


def write_timm(trained: TrainedModel, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors` as timm does for the hub.

    Mean and standard deviation are those of the run's transform; pixels are scaled to [0, 1] first,
    as timm's own transforms do.

    Raises:
        UserError: the model is not timm's.
    """
    section = trained.config.model
    if section.source != "timm":
        raise UserError(
            f"--format: timm has no model {section.name!r} of model.source: {section.source}; "
            "safetensors works"
        )
    transform = transform_preset(trained.config.data.transform)
    model: Any = trained.model
    channels = model.pretrained_cfg["input_size"][0]
    settings = {
        "mean": transform.mean or (0.0,) * channels,
        "std": transform.std or (1.0,) * channels,
    }
    save_for_hf(
        model,
        str(folder),
        model_config={"pretrained_cfg": settings},
        model_args=dict(section.args),
        safe_serialization=True,
    )
