"""DeepSpeed's learning-rate schedules as pure functions of the step, computed by DeepSpeed itself.

`deepspeed.initialize` sets a schedule's first rate before the first step and moves it after each
step (`DeepSpeedEngine._take_model_step`). Its schedules compute everything from the index of the
last step, so that a resume needs that index and no other state.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from data_pipelines.errors import UserError

_BEFORE_THE_START = "Attempting to get learning rate from scheduler before it has started"


class DeepSpeedSchedule:
    """What one of DeepSpeed's schedules sets in the optimizer's parameter groups, by step.

    Args:
        name: the class in `deepspeed.runtime.lr_schedules`.
        arguments: its arguments, as in `scheduler.params` of a DeepSpeed config.
        groups: the optimizer's parameter groups as they are before training; their `lr`, and
            `betas` where they have them, are read.

    Raises:
        UserError: DeepSpeed refuses an argument; its own words are in the message.
    """

    def __init__(
        self, name: str, arguments: Mapping[str, Any], *, groups: Sequence[Mapping[str, Any]]
    ) -> None:
        # Imported here: DeepSpeed takes seconds to import, and most configs do without it.
        from deepspeed.runtime import lr_schedules

        self._stand_in = _StandIn(groups)
        try:
            with _without_the_notice_of_a_start():
                self._scheduler = getattr(lr_schedules, name)(self._stand_in, **arguments)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"schedule.args: {name} refuses {dict(arguments)}: {error}") from error
        self._first = self._stand_in.settings()

    def __call__(self, step: int) -> list[dict[str, Any]]:
        """The settings of every parameter group in an optimizer step.

        Args:
            step: counted from 0.

        Returns:
            For each group a dict with `lr`, and with `betas` where its optimizer has them
            (`OneCycle` moves them as well).
        """
        if step == 0:
            return [dict(settings) for settings in self._first]
        self._scheduler.step(step - 1)
        return self._stand_in.settings()


class _StandIn(torch.optim.Optimizer):
    """Holds parameter groups for a schedule to write to, and no parameters that are trained."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self._names = ("lr", "betas") if all("betas" in group for group in groups) else ("lr",)
        defaults = {name: groups[0][name] for name in self._names}
        super().__init__(
            [
                {"params": [torch.zeros(1)], **{name: group[name] for name in self._names}}
                for group in groups
            ],
            defaults,
        )

    def settings(self) -> list[dict[str, Any]]:
        return [{name: group[name] for name in self._names} for group in self.param_groups]


@contextmanager
def _without_the_notice_of_a_start() -> Iterator[None]:
    """DeepSpeed's warm-ups warn of the question that their own constructors ask."""

    def is_other(record: logging.LogRecord) -> bool:
        return record.getMessage() != _BEFORE_THE_START

    logger = logging.getLogger("DeepSpeed")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
