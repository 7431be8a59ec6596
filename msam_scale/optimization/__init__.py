"""Optimizers and learning-rate schedules by name, and steps that can be skipped on the device."""

from msam_scale.optimization.optimizers import (
    build_optimizer,
    optimizer_arguments,
    optimizer_class,
)
from msam_scale.optimization.schedules import SCHEDULES, Schedule, build_schedule
from msam_scale.optimization.skipping import SkippedSteps, step_unless

__all__ = [
    "SCHEDULES",
    "Schedule",
    "SkippedSteps",
    "build_optimizer",
    "build_schedule",
    "optimizer_arguments",
    "optimizer_class",
    "step_unless",
]
