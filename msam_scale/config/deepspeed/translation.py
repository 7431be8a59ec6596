"""From a DeepSpeed config to settings of ours, key by key."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from msam_scale.config.deepspeed.batch_sizes import translate_batch_sizes
from msam_scale.config.deepspeed.fates import PassedOn, Refused, Translated, asks_for_nothing
from msam_scale.config.deepspeed.findings import Findings
from msam_scale.config.deepspeed.msam_section import EXAMPLE, translate_msam
from msam_scale.config.deepspeed.optimizers import CLIENT_OPTIMIZER, translate_optimizer
from msam_scale.config.deepspeed.precision import translate_precision
from msam_scale.config.deepspeed.schedules import top_rate, translate_scheduler
from msam_scale.config.deepspeed.top_level_keys import MSAM, TOP_LEVEL_KEYS
from msam_scale.config.deepspeed.zero import translate_zero
from msam_scale.config.deepspeed.zero_keys import OFFLOAD_KEYS, ZERO_KEYS, offloads_optimizer
from msam_scale.config.describe import kind_of, listed, shown
from msam_scale.config.keys import nested, sections
from msam_scale.config.problems import Problem
from msam_scale.config.suggestions import settings_meant

# What the Hugging Face Trainer's own defaults come to.
_TRAINERS = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "lr": 5e-5,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "warmup_min_lr": 0.0,
    "warmup_max_lr": 5e-5,
    "warmup_num_steps": 100,
    "total_num_steps": 1000,
    "enabled": True,
}
# GRADIENT_CLIPPING_DEFAULT in deepspeed/runtime/constants.py, since DeepSpeed 0.19.3.
_CLIPPING_DEFAULT = 1.0


@dataclass(frozen=True)
class Translation:
    """A DeepSpeed config in our terms.

    Attributes:
        values: sections of ours with their keys.
        names: the DeepSpeed key behind each of our settings, for messages.
        problems: what is refused; their keys are DeepSpeed's.
        unsettled: settings of ours whose value was refused.
        notes: what missing keys mean that is easily overlooked, a line each.
    """

    values: dict[str, Any]
    names: Mapping[str, str]
    problems: tuple[Problem, ...]
    unsettled: frozenset[str]
    notes: tuple[str, ...] = ()


def is_deepspeed_config(values: Mapping[Any, Any]) -> bool:
    """Whether a config is DeepSpeed's: it has an `msam` section, or keys of DeepSpeed's alone."""
    if "msam" in values:
        return True
    ours = sections()
    deepspeeds = [key for key in values if key in TOP_LEVEL_KEYS and key not in ours]
    return bool(deepspeeds) and all(key in TOP_LEVEL_KEYS for key in values if key in ours)


def translate(values: Mapping[str, Any], *, world_size: int | None) -> Translation:
    """Takes a whole DeepSpeed config for a config of ours.

    Args:
        values: its top level, with an `msam` section.
        world_size: W, ranks; `None`: not known yet, so `batch.chunk` may stay open.
    """
    values = _without_nulls(values)
    findings = find_settings(values, with_zero=False, is_offloaded=False)
    if "batch.size" not in findings.unsettled:
        translate_batch_sizes(values, world_size=world_size, findings=findings)
    if "msam" not in values:
        findings.refuse(
            "msam",
            f"is missing from this DeepSpeed config; a section that says how works: {EXAMPLE}",
            unsettles=MSAM.into,
        )
    if "optimizer" not in values:
        findings.settings["optimizer.name"] = CLIENT_OPTIMIZER
    notes = []
    if "gradient_clipping" not in values:
        findings.set("optimizer.clip_norm", _CLIPPING_DEFAULT, source="gradient_clipping")
        notes.append(
            f"gradient_clipping is missing: gradients are clipped at norm {_CLIPPING_DEFAULT}, "
            "which is DeepSpeed 0.19.8's default; 0 switches clipping off"
        )
    rest = handed_on(values)
    strategy = findings.settings.get("sharding.strategy", "replicated")
    if strategy != "replicated":
        if rest:
            findings.set("sharding.deepspeed", rest, source="")  # its keys are at the top there
    elif "sharding.strategy" not in findings.unsettled:
        for key in _asked_for(rest):
            message = "has no effect without ZeRO; leave it out, or set zero_optimization.stage"
            findings.refuse(key, message)
    return Translation(
        values=nested(findings.settings),
        names=findings.names,
        problems=tuple(findings.problems),
        unsettled=frozenset(findings.unsettled),
        notes=tuple(notes),
    )


def find_settings(values: Mapping[str, Any], *, with_zero: bool, is_offloaded: bool) -> Findings:
    """The settings that the keys of a DeepSpeed config lead to; none for keys that are not there.

    The batch sizes are left out: they depend on each other, and on the number of ranks.

    Args:
        values: the DeepSpeed config's top level.
        with_zero: whether DeepSpeed shards, where the config does not say.
        is_offloaded: whether optimizer state is in host memory, where the config does not say.
    """
    findings = Findings()
    values = {
        key: value
        for key, value in _without_nulls(values).items()
        if not (isinstance(fate := TOP_LEVEL_KEYS.get(key), Refused) and fate.unless(value))
    }
    _refuse_auto(values, findings=findings)
    values = without_auto(values)
    _check_top_level(values, findings=findings)
    if "msam" in values:
        translate_msam(values["msam"], findings=findings)
    if "zero_optimization" in values:
        translate_zero(values["zero_optimization"], findings=findings)
    translate_precision(values, findings=findings)
    if "optimizer" in values:
        zero = values.get("zero_optimization")
        zero = zero if isinstance(zero, dict) else {}
        strategy = findings.settings.get("sharding.strategy")
        translate_optimizer(
            values["optimizer"],
            with_zero=with_zero if strategy is None else strategy != "replicated",
            is_offloaded=is_offloaded or offloads_optimizer(zero),
            findings=findings,
        )
    if "scheduler" in values:
        translate_scheduler(values["scheduler"], findings=findings)
        _leave_rate_to_schedule(findings)
    _translate_rest(values, findings=findings)
    return findings


def handed_on(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a DeepSpeed config that DeepSpeed gets as it is."""
    rest = {
        key: copy.deepcopy(value)
        for key, value in values.items()
        if isinstance(TOP_LEVEL_KEYS.get(key), PassedOn)
    }
    zero = values.get("zero_optimization")
    if isinstance(zero, dict):
        kept = {
            key: copy.deepcopy(value)
            for key, value in zero.items()
            if isinstance(ZERO_KEYS.get(key), PassedOn)
        }
        for name in OFFLOAD_KEYS:
            if isinstance(kept.get(name), dict):
                known = ("device", "pin_memory")
                kept[name] = {key: kept[name][key] for key in known if key in kept[name]}
        if kept:
            rest["zero_optimization"] = kept
    return rest


def without_auto(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that the Hugging Face Trainer would have filled in."""
    return {
        key: without_auto(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if not _is_auto(value)
    }


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def _refuse_auto(values: Mapping[str, Any], *, findings: Findings) -> None:
    """One problem for all of them, which proposes values."""
    places = list(_places_of_auto(values))
    if not places:
        return
    others = f", as it does {listed(places[1:], last='and')}" if places[1:] else ""
    proposals = [
        f"{place}: {shown(value)}" for place in places if (value := _proposal(place)) is not None
    ]
    works = f", such as {listed(proposals, last='and')}" if proposals else ""
    fates = (TOP_LEVEL_KEYS.get(place.partition(".")[0]) for place in places)
    findings.refuse(
        places[0],
        f"'auto' is for the Hugging Face Trainer, which fills it in{others}; values work{works}",
        unsettles={key for fate in fates if isinstance(fate, Translated) for key in fate.into},
    )


def _places_of_auto(values: Mapping[str, Any], *, above: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _places_of_auto(value, above=f"{above}{key}.")
        elif _is_auto(value):
            yield f"{above}{key}"


def _proposal(place: str) -> Any:
    name = place.rpartition(".")[2]
    fate = ZERO_KEYS.get(name)
    return fate.default if isinstance(fate, PassedOn) else _TRAINERS.get(name)


def _check_top_level(values: Mapping[str, Any], *, findings: Findings) -> None:
    for key, value in values.items():
        fate = TOP_LEVEL_KEYS.get(key)
        if fate is None:
            near = difflib.get_close_matches(key, TOP_LEVEL_KEYS, n=1) or _sections_of(key)
            known = TOP_LEVEL_KEYS.get(near[0]) if near else None
            hint = f"did you mean {near[0]}?" if near else "leave it out"
            if key in sections():
                hint = "beside an msam section there are DeepSpeed's keys only"
            findings.refuse(
                key,
                f"is not a key that DeepSpeed 0.19.8 reads; {hint}",
                unsettles=known.into if isinstance(known, Translated) else (),
            )
        elif isinstance(fate, Refused) and not fate.unless(value):
            findings.refuse(key, f"{shown(value)} is refused: {fate.reason}")
        elif isinstance(fate, PassedOn) and (works := fate.complaint(value)):
            message = f"{shown(value)} is {kind_of(value)}; {works} works"
            findings.refuse(key, message, unsettles=("sharding.deepspeed",))


def _sections_of(name: str) -> list[str]:
    """Where DeepSpeed has what is one of our keys, or goes by this name elsewhere."""
    meant = settings_meant([name])
    return [
        key
        for key, fate in TOP_LEVEL_KEYS.items()
        if isinstance(fate, Translated) and meant.intersection(fate.into)
    ]


def _leave_rate_to_schedule(findings: Findings) -> None:
    """Most of DeepSpeed's schedules set the rate from the first step on, whatever it was."""
    name = findings.settings.get("schedule.name")
    if name is not None and top_rate(name, findings.settings["schedule.args"]) is not None:
        findings.settings.pop("optimizer.lr", None)
        findings.names.pop("optimizer.lr", None)


def _translate_rest(values: Mapping[str, Any], *, findings: Findings) -> None:
    clip_norm = findings.take(
        values,
        "gradient_clipping",
        kind=(int, float),
        works="a number ≥ 0",
        where="",
        unsettles=("optimizer.clip_norm",),
    )
    if clip_norm is not None:
        # DeepSpeed's 0 is no clipping.
        findings.set("optimizer.clip_norm", clip_norm or None, source="gradient_clipping")
    if values.get("steps_per_print") is not None:
        findings.set("monitor.every", values["steps_per_print"], source="steps_per_print")
    if "tensorboard" in values:
        _translate_tensorboard(values["tensorboard"], findings=findings)


def _translate_tensorboard(section: Any, *, findings: Findings) -> None:
    key = "monitor.deepspeed_tensorboard"
    if not isinstance(section, dict):
        message = f'{shown(section)} is {kind_of(section)}; {{"enabled": true}} works'
        findings.refuse("tensorboard", message, unsettles=(key,))
        return
    for name in section.keys() - {"enabled", "output_path", "job_name"}:
        findings.refuse(
            f"tensorboard.{name}", "is not a key; enabled, output_path and job_name are"
        )
    enabled = findings.take(
        section,
        "enabled",
        kind=bool,
        works="true or false",
        where="tensorboard",
        unsettles=(key,),
        default=False,
    )
    folder, name = (
        findings.take(
            section,
            part,
            kind=str,
            works="text",
            where="tensorboard",
            unsettles=(key,),
            default=default,
        )
        for part, default in (("output_path", ""), ("job_name", "DeepSpeedJobName"))
    )
    if enabled:
        findings.set(key, os.path.join(folder, name), source="tensorboard")  # noqa: PTH118


def _asked_for(rest: Mapping[str, Any]) -> list[str]:
    """The keys that are handed on and ask for something, as `key` or `zero_optimization.key`."""
    zero = rest.get("zero_optimization", {})
    fates = [(key, TOP_LEVEL_KEYS[key], rest[key]) for key in rest if key != "zero_optimization"]
    fates += [(f"zero_optimization.{key}", ZERO_KEYS[key], zero[key]) for key in zero]
    return [
        key
        for key, fate, value in fates
        if isinstance(fate, PassedOn) and not asks_for_nothing(value, default=fate.default)
    ]


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """A null is a missing key, but for arguments: some have a default that it switches off."""
    return {
        key: _without_nulls(value) if isinstance(value, dict) and key != "params" else value
        for key, value in values.items()
        if value is not None
    }
