"""Optimizers and learning-rate schedules by name, and steps that can be skipped on the device."""

from msam_scale.optimization.optimizers import (
    build_optimizer,
    optimizer_arguments,
    optimizer_class,
)
from msam_scale.optimization.schedules import (
    SCHEDULES,
    GroupSettings,
    Schedule,
    bind_schedule,
    build_schedule,
    check_schedule,
)
from msam_scale.optimization.skipping import SkippedSteps, step_unless

__all__ = [
    "SCHEDULES",
    "GroupSettings",
    "Schedule",
    "SkippedSteps",
    "bind_schedule",
    "build_optimizer",
    "build_schedule",
    "check_schedule",
    "optimizer_arguments",
    "optimizer_class",
    "step_unless",
]
