"""Models by source and name. One file a source, one line here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.config.describe import shown
from msam_scale.models.own import build_own_model, check_own_name
from msam_scale.models.request import ModelRequest
from msam_scale.models.transformers_models import (
    build_transformers_model,
    check_transformers_name,
)
from msam_scale.models.weights import check_fits, first_lines

# What models raise that do not fit the data, or whose name says what cannot be.
_OF_NAMES_AND_DATA = (TypeError, ValueError, AssertionError, RuntimeError)

__all__ = [
    "MODEL_SOURCES",
    "ModelRequest",
    "ModelSource",
    "build_model",
    "check_model_name",
    "model_settings",
]


@dataclass(frozen=True)
class ModelSource:
    """A library of models.

    Attributes:
        kind: what its models classify, `images` or `text`.
        check_name: raises a UserError with hints where there is no such model.
        build: makes a model.
    """

    kind: str
    check_name: Callable[[str], None]
    build: Callable[[ModelRequest], nn.Module]


# timm takes a second to import, which other sources do without.


def _check_timm_name(name: str) -> None:
    from msam_scale.models.timm_models import check_timm_name

    check_timm_name(name)


def _build_timm_model(request: ModelRequest) -> nn.Module:
    from msam_scale.models.timm_models import build_timm_model

    return build_timm_model(request)


MODEL_SOURCES: dict[str, ModelSource] = {
    "timm": ModelSource("images", check_name=_check_timm_name, build=_build_timm_model),
    "transformers": ModelSource(
        "text", check_name=check_transformers_name, build=build_transformers_model
    ),
    "msam_scale": ModelSource("images", check_name=check_own_name, build=build_own_model),
}


def check_model_name(source: str, name: str) -> None:
    """Raises a UserError with the nearest names where the source has no such model."""
    MODEL_SOURCES[source].check_name(name)


def model_settings(model: nn.Module) -> dict[str, Any] | None:
    """What `ModelRequest.settings` takes of a transformers model; None for others."""
    config: Any = getattr(model, "config", None)
    if not hasattr(model, "base_model_prefix") or not hasattr(config, "to_dict"):
        return None
    settings: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return settings


def build_model(source: str, request: ModelRequest, *, seed: int) -> nn.Module:
    """Builds a model whose initial weights follow from the seed alone.

    Raises:
        UserError: no such model, one for other data, or arguments that it refuses.
    """
    if request.kind != (kind := MODEL_SOURCES[source].kind):
        fitting = [name for name, other in MODEL_SOURCES.items() if other.kind == request.kind]
        raise UserError(
            f"model.source: {source} has models for {kind}, and data.train holds {request.kind}; "
            f"{' or '.join(fitting)} works"
        )
    given = request.arguments.get("num_classes", request.num_classes)
    if given != request.num_classes:
        raise UserError(
            f"model.args: num_classes: {given} is not the {request.num_classes} of the data; leave "
            "it out"
        )
    build = MODEL_SOURCES[source].build
    with torch.random.fork_rng():
        try:
            if request.checkpoint is not None:
                check_fits(request, build)
            torch.manual_seed(seed)
            return build(request)
        except UserError:
            raise
        except Exception as error:
            # Models look at few of their arguments: what a text for a layer leads to is anything.
            if not request.arguments and not isinstance(error, _OF_NAMES_AND_DATA):
                raise
            raise UserError(
                f"model.args: {request.name} refuses {shown(dict(request.arguments))}: "
                f"{type(error).__name__}: {first_lines(error)}"
            ) from error
