"""A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import save_for_hf

from data_pipelines import transform_preset
from data_pipelines.errors import UserError
from data_pipelines.transforms.evaluation import (
    CentreSquare,
    ResizeShortEdge,
    ResizeSmallArea,
    Squash,
)
from msam_scale.export.trained_model import TrainedModel


def write_timm(trained: TrainedModel, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors` as timm does for the hub.

    What is done to images is what the run's evaluation does, in timm's terms, and nothing of the
    weights that the run may have started from; pixels are scaled to [0, 1] first, as timm's own
    transforms do. The names of the classes are those of the run's data.

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
    settings = {
        "mean": transform.mean or (0.0,),  # of every channel
        "std": transform.std or (1.0,),
        **_resizing(transform.prepare),
    }
    model_config: dict[str, Any] = {"pretrained_cfg": {"tag": str(trained.config.run.name)}}
    if trained.class_names is not None:
        model_config["label_names"] = list(trained.class_names)
    save_for_hf(
        model,
        str(folder),
        model_config=model_config,
        data_config=settings,
        model_args=dict(section.args),
        safe_serialization=True,
    )


def _resizing(prepare: object) -> dict[str, Any]:
    """What timm calls what an evaluation does to the size of an image."""
    match prepare:
        case ResizeSmallArea():
            return {"interpolation": "box", "crop_pct": 0.875, "crop_mode": "center"}
        case CentreSquare():
            return {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
        case ResizeShortEdge(share=share, bicubic=bicubic):
            interpolation = "bicubic" if bicubic else "bilinear"
            return {"interpolation": interpolation, "crop_pct": share, "crop_mode": "center"}
        case Squash():
            return {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    return {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}  # resizes nothing
