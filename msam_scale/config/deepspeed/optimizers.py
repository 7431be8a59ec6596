"""DeepSpeed's `optimizer` section: which optimizer it means, and with which arguments.

As in `DeepSpeedEngine._configure_basic_optimizer`: `Adam` and `AdamW` are DeepSpeed's own fused
implementations unless `torch_adam` is set, `Adam` decays weights as AdamW does unless `adam_w_mode`
is false, and a name that DeepSpeed does not know is looked up in torch.optim. Without ZeRO the
same arithmetic is done by torch's optimizers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from msam_scale.config.deepspeed.findings import Findings
from msam_scale.config.describe import kind_of, listed, shown

CLIENT_OPTIMIZER = "client"
"""`optimizer.name` of a config without an optimizer: the caller of `initialize` passes one."""

# Names of `optimizer.name` that stand for DeepSpeed's own implementations.
DEEPSPEED_OPTIMIZERS = (
    "deepspeed_adam",
    "deepspeed_adamw",
    "deepspeed_lion",
    "deepspeed_adagrad",
)

_NAMES = ("optimizer.name", "optimizer.args")
_ALL = (*_NAMES, "optimizer.lr", "optimizer.momentum", "optimizer.weight_decay")
_OWN_KEYS = ("lr", "momentum", "weight_decay")
_ADAM = (
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "bias_correction",
    "amsgrad",
    "adam_w_mode",
    "torch_adam",
    "foreach",
    "fp32_optimizer_states",
)
_LION = ("lr", "betas", "weight_decay", "fp32_optimizer_states")
_WORKS = "Adam, AdamW, Lion (with ZeRO), Adagrad and SGD work"
_BY_PARAMETER = (
    "its step depends on norms of whole parameters or matrices, of which ZeRO hands it flat "
    "pieces, so the result would depend on the number of ranks"
)
_NEEDS_MUP = "it needs the mup package, and parameters that mup has prepared"
_REFUSED = {
    "lamb": _BY_PARAMETER,
    "muon": _BY_PARAMETER,
    "adafactor": _BY_PARAMETER,
    "muadam": _NEEDS_MUP,
    "muadamw": _NEEDS_MUP,
    "musgd": _NEEDS_MUP,
    "onebitadam": "DeepSpeed 0.19.8 has removed it",
    "onebitlamb": "DeepSpeed 0.19.8 has removed it",
    "zerooneadam": "DeepSpeed 0.19.8 has removed it",
}


def translate_optimizer(
    section: Any, *, with_zero: bool, is_offloaded: bool, findings: Findings
) -> None:
    """Takes the `optimizer` section of a DeepSpeed config for our `optimizer` settings.

    Args:
        section: as read.
        with_zero: whether DeepSpeed shards the optimizer's state.
        is_offloaded: whether it keeps that state in host memory.
        findings: gets the settings, or what is wrong.
    """
    if not isinstance(section, dict):
        message = f"{shown(section)} is {kind_of(section)}; a mapping with type and params works"
        findings.refuse("optimizer", message, unsettles=_ALL)
        return
    for name in section.keys() - {"type", "params"}:
        if name == "legacy_fusion" and section[name] is False:
            continue
        hint = "it belongs into params" if name in _ADAM else "type and params are"
        findings.refuse(f"optimizer.{name}", f"is not a key that has an effect here; {hint}")
    kind = section.get("type")
    if not isinstance(kind, str):
        message = f"{shown(kind)} is {kind_of(kind)}; {_WORKS}"
        findings.refuse("optimizer.type", message, unsettles=_ALL)
        return
    if kind.lower() in _REFUSED and (with_zero or kind.lower() != "adafactor"):
        reason = _REFUSED[kind.lower()]
        if reason == _BY_PARAMETER and not with_zero:
            reason = "it is DeepSpeed's own, and torch has none that does the same"
        message = f"{kind} is refused: {reason}; {_WORKS}"
        findings.refuse("optimizer.type", message, unsettles=_ALL)
        return
    params = findings.take(
        section,
        "params",
        kind=dict,
        works="a mapping",
        where="optimizer",
        unsettles=_ALL,
        default={},
    )
    if "max_grad_norm" in params:
        message = "DeepSpeed refuses it here as well; gradient_clipping at the top level works"
        findings.refuse("optimizer.params.max_grad_norm", message)
    params = {name: value for name, value in params.items() if name != "max_grad_norm"}
    name, arguments = _resolved(
        kind, params, with_zero=with_zero, is_offloaded=is_offloaded, findings=findings
    )
    findings.set("optimizer.name", name, source="optimizer.type")
    for key in _OWN_KEYS:
        if arguments.get(key) is not None:
            findings.set(f"optimizer.{key}", arguments[key], source=f"optimizer.params.{key}")
    rest = {key: value for key, value in arguments.items() if key not in _OWN_KEYS}
    findings.set("optimizer.args", rest, source="optimizer.params")


def _resolved(
    kind: str,
    params: Mapping[str, Any],
    *,
    with_zero: bool,
    is_offloaded: bool,
    findings: Findings,
) -> tuple[str, dict[str, Any]]:
    """Our name of the optimizer, and all its arguments."""
    lower = kind.lower()
    if lower in ("adam", "adamw"):
        return _adam(lower, params, with_zero=with_zero, findings=findings)
    if lower == "lion":
        if not with_zero:
            findings.refuse(
                "optimizer.type",
                "Lion is DeepSpeed's own and works with ZeRO only; zero_optimization.stage 1, 2 "
                "or 3 works",
                unsettles=_NAMES,
            )
        _refuse_unknown(params, known=_LION, findings=findings)
        _refuse_unless(params, "fp32_optimizer_states", True, findings=findings)
        return "deepspeed_lion", _without(params, "fp32_optimizer_states")
    if lower == "adagrad" and with_zero and is_offloaded:
        _refuse_unless(params, "fp32_optimizer_states", True, findings=findings)
        return "deepspeed_adagrad", _without(params, "fp32_optimizer_states")
    return lower, dict(params)  # torch's, which knows its own arguments


def _adam(
    kind: str, params: Mapping[str, Any], *, with_zero: bool, findings: Findings
) -> tuple[str, dict[str, Any]]:
    _refuse_unknown(params, known=_ADAM, findings=findings)
    for flag in ("torch_adam", "adam_w_mode", "bias_correction", "amsgrad"):
        findings.take(params, flag, kind=bool, works="true or false", where="optimizer.params")
    _refuse_unless(params, "fp32_optimizer_states", True, findings=findings)
    decoupled = kind == "adamw" or params.get("adam_w_mode", True) is True
    name = "adamw" if decoupled else "adam"
    arguments = _without(params, "torch_adam", "adam_w_mode", "fp32_optimizer_states")
    if params.get("torch_adam", False) is True:
        _refuse_unless(params, "bias_correction", True, findings=findings)
        return name, _without(arguments, "bias_correction")
    # torch's AdamW decays weights by default, DeepSpeed's does not.
    arguments.setdefault("weight_decay", 0.0)
    _refuse_unless(params, "amsgrad", False, findings=findings)
    if "foreach" in params:
        message = "only torch's Adam has it; leave it out, or set torch_adam: true"
        findings.refuse("optimizer.params.foreach", message)
    arguments = _without(arguments, "amsgrad", "foreach")
    if with_zero:
        return f"deepspeed_{name}", arguments
    _refuse_unless(params, "bias_correction", True, findings=findings)
    return name, _without(arguments, "bias_correction")


def _refuse_unknown(
    params: Mapping[str, Any], *, known: tuple[str, ...], findings: Findings
) -> None:
    for name in params:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = (
            f"did you mean {near[0]}?" if near else f"its arguments are {listed(known, last='and')}"
        )
        findings.refuse(f"optimizer.params.{name}", f"is not an argument; {hint}")


def _refuse_unless(
    params: Mapping[str, Any], name: str, works: bool, *, findings: Findings
) -> None:
    if params.get(name, works) is not works:
        findings.refuse(
            f"optimizer.params.{name}",
            f"{shown(params[name])} is not available with this optimizer; {shown(works)} works",
        )


def _without(params: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name not in names}
