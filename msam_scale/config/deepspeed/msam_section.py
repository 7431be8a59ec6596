"""The `msam` section: what a DeepSpeed config has to say beside DeepSpeed's own keys."""

from __future__ import annotations

import difflib
from typing import Any

from msam_scale.config.deepspeed.findings import Findings
from msam_scale.config.deepspeed.top_level_keys import MSAM
from msam_scale.config.describe import kind_of, listed, shown

EXAMPLE = '"msam": {"micro_batches": 8, "rho": 0.05}'
# Each key bears the name of the setting that it stands for.
_SETTINGS = {key.rpartition(".")[2]: key for key in MSAM.into}


def translate_msam(section: Any, *, findings: Findings) -> None:
    """Takes the section's keys for settings; their values are checked where all settings are."""
    if not isinstance(section, dict):
        findings.refuse(
            "msam",
            f"{shown(section)} is {kind_of(section)}; a mapping works, such as {EXAMPLE}",
            unsettles=MSAM.into,
        )
        return
    for name, value in section.items():
        if name in _SETTINGS:
            findings.set(_SETTINGS[name], value, source=f"msam.{name}")
            continue
        near = difflib.get_close_matches(str(name), _SETTINGS, n=1)
        if name == "m":
            near = ["micro_batches"]
        hint = (
            f"did you mean msam.{near[0]}?"
            if near
            else f"the keys of msam are {listed(list(_SETTINGS), last='and')}"
        )
        meant = [_SETTINGS[one] for one in near]
        findings.refuse(f"msam.{name}", f"is not a key; {hint}", unsettles=meant)
