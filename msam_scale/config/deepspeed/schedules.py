"""DeepSpeed's learning-rate schedules: which there are, and which arguments they take.

As `deepspeed/runtime/lr_schedules.py` and
https://www.deepspeed.ai/docs/config-json/#scheduler-parameters have them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from msam_scale.config.deepspeed.findings import Findings
from msam_scale.config.describe import kind_of, listed, shown


@dataclass(frozen=True)
class _Argument:
    kinds: tuple[type, ...]
    works: str
    positive: bool = False
    choices: tuple[str, ...] = ()

    def fits(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or bool in self.kinds:
            return isinstance(value, bool) and bool in self.kinds
        if not isinstance(value, self.kinds):
            return False
        return not self.positive or (isinstance(value, int) and value > 0)


_RATE = _Argument((int, float), "a number")
_STEPS = _Argument((int,), "a whole number of steps ≥ 1", positive=True)
_WHOLE = _Argument((int,), "a whole number")
_FLAG = _Argument((bool,), "true or false")
_WARMUP_TYPE = _Argument((str,), "'log' or 'linear'", choices=("log", "linear"))
_RATE_OR_NULL = _Argument((int, float, type(None)), "a number, or null for optimizer.lr")

_WARMUP = {
    "warmup_min_lr": _RATE,
    "warmup_max_lr": _RATE_OR_NULL,
    "warmup_num_steps": _STEPS,
    "warmup_type": _WARMUP_TYPE,
}
SCHEDULE_ARGUMENTS: Mapping[str, Mapping[str, _Argument]] = {
    "LRRangeTest": {
        "lr_range_test_min_lr": _RATE,
        "lr_range_test_step_size": _STEPS,
        "lr_range_test_step_rate": _RATE,
        "lr_range_test_staircase": _FLAG,
    },
    "OneCycle": {
        "cycle_min_lr": _RATE,
        "cycle_max_lr": _RATE,
        "decay_lr_rate": _RATE,
        "cycle_first_step_size": _STEPS,
        "cycle_second_step_size": _WHOLE,
        "cycle_first_stair_count": _WHOLE,
        "cycle_second_stair_count": _WHOLE,
        "decay_step_size": _WHOLE,
        "cycle_momentum": _FLAG,
        "cycle_min_mom": _RATE,
        "cycle_max_mom": _RATE,
        "decay_mom_rate": _RATE,
    },
    "WarmupLR": _WARMUP,
    "WarmupDecayLR": {"total_num_steps": _STEPS, **_WARMUP},
    "WarmupCosineLR": {
        "total_num_steps": _STEPS,
        "warmup_min_ratio": _RATE,
        "warmup_num_steps": _STEPS,
        "cos_min_ratio": _RATE,
        "warmup_type": _WARMUP_TYPE,
    },
}
REQUIRED_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "OneCycle": ("cycle_min_lr", "cycle_max_lr"),
    "WarmupDecayLR": ("total_num_steps",),
    "WarmupCosineLR": ("total_num_steps",),
}
# The argument that holds the highest rate, where that is not optimizer.lr, and its default.
_TOP_RATE: Mapping[str, tuple[str, float | None]] = {
    "LRRangeTest": ("lr_range_test_min_lr", 1e-3),
    "OneCycle": ("cycle_max_lr", None),
    "WarmupLR": ("warmup_max_lr", None),
    "WarmupDecayLR": ("warmup_max_lr", 1e-3),
}


def top_rate(name: str, arguments: Mapping[str, Any]) -> tuple[str, float] | None:
    """The argument, given or by default, that a schedule takes its rate from.

    Returns:
        Its name and value; None where the rate is the optimizer's own (`optimizer.lr`).
    """
    if name not in _TOP_RATE:
        return None
    argument, default = _TOP_RATE[name]
    value = arguments.get(argument, default)
    return None if value is None else (argument, value)


def argument_complaints(
    name: str, arguments: Mapping[str, Any]
) -> Iterator[tuple[str | None, str]]:
    """What is wrong with the arguments of a DeepSpeed schedule.

    Args:
        name: one of `SCHEDULE_ARGUMENTS`.
        arguments: as DeepSpeed's `scheduler.params`.

    Yields:
        The argument, or None for all of them, and what is wrong.
    """
    known = SCHEDULE_ARGUMENTS[name]
    for argument, value in arguments.items():
        if argument not in known:
            near = difflib.get_close_matches(argument, known, n=1)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else f"{name} takes {listed([*known], last='and')}"
            )
            if argument == "last_batch_iteration":
                hint = "leave it out: a run that goes on knows its step"
            yield argument, f"is not an argument here; {hint}"
        elif not known[argument].fits(value):
            works = known[argument].works
            if isinstance(value, list):
                works = f"{works} works, the same for all parameters"
                yield argument, f"{shown(value)} is a list; {works}"
            else:
                yield argument, f"{shown(value)} is {_kind(value)}; {works} works"
    for argument in REQUIRED_ARGUMENTS.get(name, ()):
        if argument not in arguments:
            yield None, f"lacks {argument}, which {name} needs; {known[argument].works} works"
    total, warmup = arguments.get("total_num_steps"), arguments.get("warmup_num_steps", 1000)
    if isinstance(total, int) and isinstance(warmup, int) and total < warmup:
        yield (
            "warmup_num_steps",
            f"{warmup} steps are more than total_num_steps: {total}; at most that many work",
        )


def translate_scheduler(section: Any, *, findings: Findings) -> None:
    """Takes the `scheduler` section of a DeepSpeed config for our `schedule` settings.

    The arguments are checked with all other settings.
    """
    unsettles = ("schedule.name", "schedule.args")
    if not isinstance(section, dict):
        message = f"{shown(section)} is {kind_of(section)}; a mapping with type and params works"
        findings.refuse("scheduler", message, unsettles=unsettles)
        return
    for name in section.keys() - {"type", "params"}:
        findings.refuse(f"scheduler.{name}", "is not a key; type and params are")
    kind = section.get("type")
    if not isinstance(kind, str) or kind not in SCHEDULE_ARGUMENTS:
        works = listed(list(SCHEDULE_ARGUMENTS), last="and")
        message = f"{shown(kind)} is not one of DeepSpeed's schedules; {works} work"
        findings.refuse("scheduler.type", message, unsettles=unsettles)
        return
    params = findings.take(
        section,
        "params",
        kind=dict,
        works="a mapping",
        where="scheduler",
        unsettles=unsettles,
        default={},
    )
    findings.set("schedule.name", kind, source="scheduler.type")
    findings.set("schedule.args", params, source="scheduler.params")


def _kind(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "not in its range" if isinstance(value, int) else "not a whole number"
    return kind_of(value)
