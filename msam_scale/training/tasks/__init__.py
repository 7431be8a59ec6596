"""What is trained on: one file a kind of data, chosen by what the training data are."""

from __future__ import annotations

from data_pipelines import Split, transform_preset
from data_pipelines.errors import UserError
from msam_scale.training.tasks.images import ImageTask
from msam_scale.training.tasks.interface import Task
from msam_scale.training.tasks.texts import TextTask

__all__ = ["ImageTask", "Task", "TextTask", "make_task"]


def make_task(train: Split, *, transform: str) -> Task:
    """The task that training data are for.

    Args:
        train: the training data.
        transform: `data.transform`.

    Raises:
        UserError: there is no such transform, or it does not fit the data.
    """
    preset = transform_preset(transform)
    if train.index.meta.tokens is None:
        return ImageTask(train, transform=preset)
    if transform != "none":
        raise UserError(
            f"data.transform: {transform} is for images, but {train.index.directory} holds text; "
            "leave it out"
        )
    return TextTask(train)
