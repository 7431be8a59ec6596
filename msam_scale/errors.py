"""The errors a user of the engine may want to catch."""

from __future__ import annotations

from data_pipelines.errors import UserError
from msam_scale.config.problems import ConfigError

__all__ = ["ConfigError", "NonFiniteError", "NonFiniteStepError", "UserError"]


class NonFiniteError(FloatingPointError):
    """Losses or gradients that are not finite end the training."""


class NonFiniteStepError(NonFiniteError):
    """A single step was not finite, which `objective.non_finite` allows none to be.

    Args:
        message: the whole of it.
        step: of the bad step, counted from 0; it has left the weights as they were.
        fault: what of it was not finite, in words.

    Attributes:
        step: as given.
        fault: as given.
    """

    def __init__(self, message: str, *, step: int, fault: str) -> None:
        super().__init__(message)
        self.step = step
        self.fault = fault
