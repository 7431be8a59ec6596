"""Models that neither timm nor transformers has, by a pattern of their name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from data_pipelines.errors import UserError
from msam_scale.models.cifar_resnet import cifar_resnet50
from msam_scale.models.request import ModelRequest
from msam_scale.models.weights import (
    explained_misfit,
    load_weights,
    num_outputs,
    saved_weights,
    weight_shapes,
)
from msam_scale.models.wide_resnet import WideResNet


@dataclass(frozen=True)
class _Family:
    """Models whose names follow one pattern.

    Attributes:
        pattern: of the whole name.
        build: makes a model of the match and of keyword arguments.
        channels: the argument for the channels of the images.
        head: name of the last layer.
    """

    pattern: str
    build: Callable[[re.Match[str], dict[str, Any]], nn.Module]
    channels: str
    head: str


def _wide_resnet(match: re.Match[str], arguments: dict[str, Any]) -> nn.Module:
    return WideResNet(depth=int(match["depth"]), width=int(match["width"]), **arguments)


def _cifar_resnet50(_match: re.Match[str], arguments: dict[str, Any]) -> nn.Module:
    return cifar_resnet50(**arguments)


_FAMILIES = {
    "wrn-DEPTH-WIDTH": _Family(
        r"wrn-(?P<depth>\d+)-(?P<width>\d+)", _wide_resnet, channels="num_channels", head="head"
    ),
    "cifar_resnet50": _Family("cifar_resnet50", _cifar_resnet50, channels="in_chans", head="fc"),
}


def _find(name: str) -> tuple[_Family, re.Match[str]]:
    for family in _FAMILIES.values():
        if (match := re.fullmatch(family.pattern, name)) is not None:
            return family, match
    raise UserError(
        f"model.name: {name!r} is not a model of msam_scale; known: {', '.join(_FAMILIES)} "
        "(wrn-28-10, for example)"
    )


def check_own_name(name: str) -> None:
    """Raises a UserError where no model has this name."""
    _find(name)


def build_own_model(request: ModelRequest) -> nn.Module:
    """The model whose pattern fits the name, with the weights of `request.weights` if given.

    Raises:
        UserError: there is no such model, or the weights do not fit.
    """
    family, match = _find(request.name)
    model = family.build(match, request.keywords(channels=family.channels))
    if (path := request.weights) is not None:
        num_classes = num_outputs(weight_shapes(path), heads=[family.head])
        with explained_misfit(path, name=request.name):
            anew = load_weights(
                model, saved_weights(path), heads=[family.head], num_classes=num_classes
            )
            request.anew.extend(anew)
    return model
