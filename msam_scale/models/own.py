"""Models that neither timm nor transformers has, by a pattern of their name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from data_pipelines.errors import UserError
from msam_scale.models.request import ModelRequest
from msam_scale.models.wide_resnet import WideResNet


def _wide_resnet(match: re.Match[str], arguments: dict[str, Any]) -> nn.Module:
    return WideResNet(depth=int(match["depth"]), width=int(match["width"]), **arguments)


_PATTERNS: dict[str, tuple[re.Pattern[str], Callable[[re.Match[str], dict[str, Any]], nn.Module]]]
_PATTERNS = {
    "wrn-DEPTH-WIDTH": (re.compile(r"wrn-(?P<depth>\d+)-(?P<width>\d+)"), _wide_resnet),
}


def _find(name: str) -> tuple[re.Match[str], Callable[[re.Match[str], dict[str, Any]], nn.Module]]:
    for pattern, build in _PATTERNS.values():
        if (match := pattern.fullmatch(name)) is not None:
            return match, build
    raise UserError(
        f"model.name: {name!r} is not a model of msam_scale; known: {', '.join(_PATTERNS)} "
        "(wrn-28-10, for example)"
    )


def check_own_name(name: str) -> None:
    """Raises a UserError where no model has this name."""
    _find(name)


def build_own_model(request: ModelRequest) -> nn.Module:
    """The model whose pattern fits the name."""
    match, build = _find(request.name)
    arguments = {
        "num_classes": request.num_classes,
        "num_channels": request.num_channels,
        **request.arguments,
    }
    return build(match, arguments)
