"""DeepSpeed's `zero_optimization` section: the strategy, and what DeepSpeed is handed as it is."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from msam_scale.config.deepspeed.fates import Fate, PassedOn, Refused
from msam_scale.config.deepspeed.findings import Findings
from msam_scale.config.deepspeed.zero_keys import OFFLOAD_KEYS, STRATEGY_OF, ZERO_KEYS
from msam_scale.config.describe import kind_of, shown

_UNSETTLES = ("sharding.strategy", "sharding.deepspeed")


def translate_zero(section: Any, *, findings: Findings) -> None:
    """Takes the stage for `sharding.strategy`, and refuses what cannot be handed on."""
    if not isinstance(section, dict):
        message = f'{shown(section)} is {kind_of(section)}; {{"stage": 2}} works'
        findings.refuse("zero_optimization", message, unsettles=_UNSETTLES)
        return
    if "stage" in section:
        stage = section["stage"]
        if isinstance(stage, bool) or not isinstance(stage, int) or stage not in STRATEGY_OF:
            message = f"{shown(stage)} is not a stage; 0, 1, 2 or 3 works"
            findings.refuse("zero_optimization.stage", message, unsettles=_UNSETTLES)
        else:
            source = "zero_optimization.stage"
            findings.set("sharding.strategy", STRATEGY_OF[stage], source=source)
    for key, message in refusals(section, fates=ZERO_KEYS):
        findings.refuse(f"zero_optimization.{key}", message, unsettles=("sharding.deepspeed",))
    for name, fates in OFFLOAD_KEYS.items():
        if isinstance(section.get(name), dict):
            for key, message in refusals(section[name], fates=fates):
                place = f"zero_optimization.{name}.{key}"
                findings.refuse(place, message, unsettles=("sharding.deepspeed",))


def refusals(section: Mapping[str, Any], *, fates: Mapping[str, Fate]) -> Iterator[tuple[str, str]]:
    """The keys of a section that cannot stay, each with the reason and what works."""
    for key, value in section.items():
        fate = fates.get(key)
        if fate is None:
            near = difflib.get_close_matches(key, fates, n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out"
            yield key, f"is not a key that DeepSpeed 0.19.8 reads; {hint}"
        elif isinstance(fate, Refused) and not fate.unless(value):
            yield key, f"{shown(value)} is refused: {fate.reason}"
        elif isinstance(fate, PassedOn) and value is not None:
            works = fate.complaint(value)
            if works:
                yield key, f"{shown(value)} is {kind_of(value)}; {works} works"
