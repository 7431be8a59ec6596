"""Learning-rate schedules as pure functions of the step, so that a resume needs no state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Any

from data_pipelines.errors import UserError
from msam_scale.config.deepspeed.schedules import SCHEDULE_ARGUMENTS
from msam_scale.config.sections.optimization import ScheduleSection
from msam_scale.optimization.deepspeed_schedules import DeepSpeedSchedule

GroupSettings = Callable[[int], list[dict[str, Any]]]
"""What a step, counted from 0, sets in each of the optimizer's parameter groups: `lr` above all."""

# torch.optim.lr_scheduler.OneCycleLR's defaults.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = 1 / 25 / 1e4


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a step as a fraction of the configured (peak) one.

    After the last step it stays where it ended.

    Attributes:
        shape: the fraction by (step, warm-up steps, all steps).
        needs_end: the fraction depends on the number of all steps.
    """

    shape: Callable[[int, float, int], float]
    needs_end: bool


def _one_cycle(step: int, warmup: float, total: int) -> float:
    """As `OneCycleLR` with cosine annealing; the momentum stays as configured."""
    rise = warmup - 1
    if step <= rise:
        return _cosine_between(_ONE_CYCLE_START, 1.0, step / rise if rise > 0 else 1.0)
    rise = max(rise, 0.0)
    return _cosine_between(1.0, _ONE_CYCLE_END, (step - rise) / max(total - 1 - rise, 1.0))


def _cosine(step: int, warmup: float, total: int) -> float:
    """Linear warm-up, then half a cosine to zero, which the step after the last would have."""
    if step < warmup:
        return min((step + 1) / warmup, 1.0)
    return _cosine_between(1.0, 0.0, (step - warmup) / (total - warmup))


def _linear(step: int, warmup: float, total: int) -> float:
    """Linear warm-up, then a line to zero, which the step after the last would have."""
    if step < warmup:
        return min((step + 1) / warmup, 1.0)
    return max(total - step, 0.0) / (total - warmup)


def _constant(step: int, warmup: float, _total: int) -> float:
    """Linear warm-up, then 1."""
    return min((step + 1) / warmup, 1.0) if step < warmup else 1.0


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2.0 * (cos(pi * min(progress, 1.0)) + 1)


SCHEDULES: dict[str, Schedule] = {
    "one_cycle": Schedule(shape=_one_cycle, needs_end=True),
    "cosine": Schedule(shape=_cosine, needs_end=True),
    "linear": Schedule(shape=_linear, needs_end=True),
    "constant": Schedule(shape=_constant, needs_end=False),
}


def build_schedule(
    name: str, *, warmup: int | float, num_steps: int | None
) -> Callable[[int], float]:
    """The fraction of the peak learning rate by step, counted from 0.

    Args:
        name: one of `SCHEDULES`.
        warmup: steps as an int, or a fraction of all steps as a float.
        num_steps: all steps of the run, where they are known.

    Raises:
        UserError: the schedule or a fractional warm-up needs `num_steps`, or the warm-up is as
            long as the run.
    """
    if num_steps is not None and num_steps < 1:
        raise UserError(f"num_steps: {num_steps} is not positive; the steps of the whole run work")
    schedule = SCHEDULES[name]
    fractional = isinstance(warmup, float) and warmup > 0
    if num_steps is None and (schedule.needs_end or fractional):
        what = f"schedule.name: {name!r}" if schedule.needs_end else f"schedule.warmup: {warmup}"
        raise UserError(
            f"{what} depends on the length of the run; set training.steps, or pass num_steps to "
            "initialize"
        )
    total = num_steps or 0
    steps = warmup * total if isinstance(warmup, float) else float(warmup)
    if num_steps is not None and steps >= num_steps and steps > 0:
        raise UserError(
            f"schedule.warmup: {warmup} leaves nothing of {num_steps} steps; it must be shorter"
        )
    return lambda step: schedule.shape(step, steps, total)


def check_schedule(section: ScheduleSection, *, num_steps: int | None) -> None:
    """Raises what `bind_schedule` would raise, before there is an optimizer."""
    bind_schedule(section, [{"lr": 1.0}], num_steps=num_steps)


def bind_schedule(
    section: ScheduleSection, groups: Sequence[Mapping[str, Any]], *, num_steps: int | None
) -> GroupSettings:
    """The schedule of a config for an optimizer.

    Args:
        section: names one of `SCHEDULES`, or one of DeepSpeed's.
        groups: the optimizer's parameter groups as they are before training; their learning rates
            are the peaks of ours. A group's `lr_scale`, which timm's `layer_decay` sets, multiplies
            its rates at every step, as in timm's schedulers.
        num_steps: all steps of the run, where they are known.

    Raises:
        UserError: the schedule needs `num_steps`, or cannot be as asked.
    """
    scales = [group.get("lr_scale", 1.0) for group in groups]
    if section.name in SCHEDULE_ARGUMENTS:
        settings = DeepSpeedSchedule(section.name, section.args, groups=groups)
        return lambda step: [
            {**of_group, "lr": of_group["lr"] * scale}
            for of_group, scale in zip(settings(step), scales, strict=True)
        ]
    fraction = build_schedule(section.name, warmup=section.warmup, num_steps=num_steps)
    peaks = [group["lr"] * scale for group, scale in zip(groups, scales, strict=True)]
    return lambda step: [{"lr": peak * fraction(step)} for peak in peaks]
