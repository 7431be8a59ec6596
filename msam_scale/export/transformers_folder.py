"""A folder that `AutoModelForSequenceClassification.from_pretrained(FOLDER)` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.preparation.tokenised_texts import load_tokenizer
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
    if (names := trained.class_names) is not None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)


def write_tokenizer(trained: TrainedModel, folder: Path, *, named: str | None) -> None:
    """Writes the tokenizer that made the tokens of the run's data.

    Without it a program that loads the folder would make one up from the model's settings.

    Args:
        trained: of transformers.
        folder: of the export.
        named: the tokenizer's folder or its name on the hub; None: it is looked for under the
            names of the model and of the data's own record.

    Raises:
        UserError: it is not there, or is another one than that of the data.
    """
    record = trained.tokenizer
    candidates = [str(trained.config.model.name)] if named is None else [named]
    if named is None and record is not None:
        candidates.append(record.name)
    faults = []
    for name in candidates:
        try:
            tokenizer = load_tokenizer(name, max_length=record.max_length if record else 512)
        except UserError as error:
            faults.append(str(error))
            continue
        if record is None or tokenizer.record.files == record.files:
            tokenizer.library_tokenizer.save_pretrained(folder)
            return
        faults.append(f"{name} is another tokenizer than {record.name}, which made the data")
    raise UserError(
        f"--tokenizer: {'; '.join(faults)}; the folder that the data were made with works"
    )
