"""DeepSpeed's `bf16` and `fp16` sections: the precision, and float16's loss scale."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from msam_scale.config.deepspeed.fates import Fate, PassedOn, Refused, one_of
from msam_scale.config.deepspeed.findings import Findings
from msam_scale.config.describe import kind_of, listed, shown

SECTIONS: Mapping[str, str] = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16"}

_MASTERS = (
    "a perturbation rounds away in weights of 16 bits, so full-precision ones are always kept; "
    "leave it out"
)
# fp16's key, ours in training.loss_scale, and DeepSpeed's default.
LOSS_SCALE_KEYS: tuple[tuple[str, str, Any], ...] = (
    ("initial_scale_power", "initial_power", 16),
    ("loss_scale_window", "window", 1000),
    ("hysteresis", "hysteresis", 2),
    ("consecutive_hysteresis", "consecutive_hysteresis", False),
    ("min_loss_scale", "min", 1),
)
_BF16_KEYS: Mapping[str, Fate] = {
    "enabled": PassedOn("flag"),
    "immediate_grad_update": Refused(
        "it is for DeepSpeed's own accumulation; leave it out", accepts=one_of(False)
    ),
    "check_grad_overflow": Refused(
        "a step whose gradient is not finite is always skipped; leave it out", default=True
    ),
    "bf16_master_weights_and_grads": Refused(_MASTERS, accepts=one_of(False)),
    "bf16_optimizer_states": Refused(_MASTERS, accepts=one_of(False)),
}
_FP16_KEYS: Mapping[str, Fate] = {
    "enabled": PassedOn("flag"),
    # Met by torch.autocast, which every forward runs in.
    "auto_cast": Refused("is not a choice: true or false works", accepts=one_of(True, False)),
    "fp16_master_weights_and_grads": Refused(_MASTERS, accepts=one_of(False)),
}


def translate_precision(values: Mapping[str, Any], *, findings: Findings) -> None:
    """Takes the `bf16` and `fp16` sections for `precision` and `training.loss_scale`."""
    enabled = []
    for name in SECTIONS:
        if name not in values:
            continue
        section = values[name]
        if not isinstance(section, dict):
            message = f'{shown(section)} is {kind_of(section)}; {{"enabled": true}} works'
            findings.refuse(name, message, unsettles=("precision",))
            continue
        _check_keys(name, section, findings=findings)
        if section.get("enabled", False) is True:
            enabled.append(name)
            if name == "fp16":
                _take_loss_scale(section, findings=findings)
    if len(enabled) > 1:
        findings.refuse(
            enabled[1],
            f"is enabled, and so is {enabled[0]}; one of them works",
            unsettles=("precision", "training.loss_scale"),
        )
    elif enabled:
        findings.set("precision", SECTIONS[enabled[0]], source=enabled[0])


def _check_keys(name: str, section: Mapping[str, Any], *, findings: Findings) -> None:
    fates = _FP16_KEYS if name == "fp16" else _BF16_KEYS
    scale_keys = ["loss_scale", *(key for key, _, _ in LOSS_SCALE_KEYS)] if name == "fp16" else []
    for key, value in section.items():
        fate = fates.get(key)
        if isinstance(fate, Refused) and not fate.unless(value):
            findings.refuse(f"{name}.{key}", f"{shown(value)} is refused: {fate.reason}")
        elif isinstance(fate, PassedOn) and (works := fate.complaint(value)):
            message = f"{shown(value)} is {kind_of(value)}; {works} works"
            findings.refuse(f"{name}.{key}", message, unsettles=("precision",))
        elif fate is None and key not in scale_keys:
            known = [*fates, *scale_keys]
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{listed(known, last='and')} are"
            findings.refuse(f"{name}.{key}", f"is not a key of {name}; {hint}")


def _take_loss_scale(section: Mapping[str, Any], *, findings: Findings) -> None:
    """Values are checked with all other settings."""
    scale = {}
    for theirs, ours, _ in LOSS_SCALE_KEYS:
        if theirs in section:
            scale[ours] = section[theirs]
            findings.names[f"training.loss_scale.{ours}"] = f"fp16.{theirs}"
    static = section.get("loss_scale", 0)
    if isinstance(static, bool) or not isinstance(static, (int, float)) or static < 0:
        message = f"{shown(static)} is not a number ≥ 0; 0 is a scale that adapts itself"
        findings.refuse("fp16.loss_scale", message, unsettles=("training.loss_scale",))
    elif static:
        scale["static"] = static
        findings.names["training.loss_scale.static"] = "fp16.loss_scale"
    if scale:
        findings.set("training.loss_scale", scale, source="fp16")
