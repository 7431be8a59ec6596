"""A folder that `AutoModelForSequenceClassification.from_pretrained(FOLDER)` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from msam_scale.export.trained_model import TrainedModel


def write_transformers(trained: TrainedModel, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors` as transformers does.

    Raises:
        UserError: the model is not one of transformers.
    """
    section = trained.config.model
    if section.source != "transformers":
        raise UserError(
            f"--format: transformers has no model {section.name!r} of model.source: "
            f"{section.source}; {'timm or ' * (section.source == 'timm')}safetensors works"
        )
    model: Any = trained.model
    model.save_pretrained(folder)
