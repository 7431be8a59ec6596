"""Learning-rate schedules as pure functions of the step, so that a resume needs no state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

from data_pipelines.errors import UserError

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
