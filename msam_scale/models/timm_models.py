"""Models of timm (PyTorch Image Models) by name, freshly initialised or pretrained."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.models.request import ModelRequest
from msam_scale.models.weights import (
    explained_misfit,
    first_lines,
    load_weights,
    num_outputs,
    saved_weights,
    weight_shapes,
)

# What create_model takes and the config has a key of its own for.
_KEYS = {"pretrained": "model.pretrained", "checkpoint_path": "model.weights"}
# What would make timm read weights from elsewhere, of which it unpickles some, or write elsewhere.
_REFUSED = {
    "pretrained_cfg": "model.weights takes a .safetensors file",
    "pretrained_cfg_overlay": "model.weights takes a .safetensors file",
    "cache_dir": "the environment variable HF_HOME does that",
}


def check_timm_name(name: str) -> None:
    """Raises a UserError with the nearest names where timm knows no such model or no such tag."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all names"
        raise UserError(f"model.name: {name!r} is not a model of timm {timm.__version__}; {hint}")
    if tag and not timm.is_model_pretrained(name):
        raise UserError(
            f"model.name: {name!r} is not among timm's pretrained weights of {architecture}; "
            f"{_pretrained_names(architecture)}"
        )


def build_timm_model(request: ModelRequest) -> nn.Module:
    """`timm.create_model` with the data's classes and channels.

    timm adapts pretrained weights to them, and position embeddings to another image size; a head
    for another number of classes keeps its initial values.

    Raises:
        UserError: there is no such model, or its weights cannot be had or do not fit.
    """
    check_timm_name(request.name)
    for argument in _KEYS.keys() & request.arguments.keys():
        raise UserError(
            f"model.args: {argument} has a key of its own: set {_KEYS[argument]} instead"
        )
    for argument in _REFUSED.keys() & request.arguments.keys():
        raise UserError(f"model.args: {argument} is not passed on: {_REFUSED[argument]}")
    arguments = request.keywords(channels="in_chans")
    model = timm.create_model(request.name, **arguments)
    if request.pretrained:
        model = _from_hub(request.name, arguments)
        if model.pretrained_cfg["num_classes"] != request.num_classes:
            request.anew.extend(_names(model.pretrained_cfg.get("classifier")))
    elif request.weights is not None:
        anew = _start_from_file(model, request.weights, name=request.name, arguments=arguments)
        request.anew.extend(anew)
    assert isinstance(model, nn.Module)
    return model


def _from_hub(name: str, arguments: dict[str, Any]) -> Any:
    if not timm.is_model_pretrained(name):
        raise UserError(
            f"model.pretrained: timm {timm.__version__} has no pretrained weights of {name}; "
            "leave it out, or set model.weights to the path of a .safetensors file"
        )
    try:
        model = timm.create_model(name, pretrained=True, **arguments)
    except OSError as error:
        raise UserError(
            f"model.pretrained: the weights of {name} cannot be fetched: {first_lines(error)}; "
            "model.weights works without the hub, with the path of a .safetensors file"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"model.pretrained: timm's weights do not fit {name} with {arguments}: "
            f"{first_lines(error)}; fewer model.args work"
        ) from error
    return model


def _start_from_file(
    model: nn.Module, path: Path, *, name: str, arguments: dict[str, Any]
) -> Sequence[str]:
    """Returns the layers that keep their initial values."""
    shapes = weight_shapes(path)
    settings = _settings(name)
    heads = _names(settings.get("classifier"))
    for layer, free in [(one, 0) for one in heads] + [(one, 1) for one in _inputs(settings)]:
        weight = f"{layer}.weight"
        if (own := model.state_dict().get(weight)) is not None and (found := shapes.get(weight)):
            expected = (*own.shape[:free], *found[free : free + 1], *own.shape[free + 1 :])
            if found != expected:  # before a model as large as the file says is built
                raise UserError(
                    f"model.weights: {path} does not fit model.name: {name}: its {weight} is "
                    f"{found}, and {expected} would fit; weights of the same model with the same "
                    "model.args work"
                )
    num_classes = num_outputs(shapes, heads=heads)
    # The model that the file is of, so that timm checks every name and shape: with another number
    # of classes it would only log what is missing.
    overlay = {
        "state_dict": saved_weights(path),
        "custom_load": False,
        "num_classes": num_classes,
        "label_offset": None,
        "input_size": (_num_channels(shapes, settings), *settings["input_size"][1:]),
    }
    with explained_misfit(path, name=name):
        source = timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            **{**arguments, "num_classes": num_classes},
        )
        return load_weights(model, source.state_dict(), heads=heads, num_classes=num_classes)


def _settings(name: str) -> dict[str, Any]:
    found = timm.get_pretrained_cfg(name)
    assert found is not None
    settings: dict[str, Any] = found.to_dict()
    return settings


def _num_channels(shapes: dict[str, tuple[int, ...]], settings: dict[str, Any]) -> int:
    """Channels of the images that the file's model takes."""
    for convolution in _inputs(settings):
        shape = shapes.get(f"{convolution}.weight", ())
        if len(shape) == 4:
            return shape[1]
    return int(settings["input_size"][0])


def _inputs(settings: dict[str, Any]) -> tuple[str, ...]:
    return _names(settings.get("first_conv"))


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _pretrained_names(architecture: str) -> str:
    known = timm.list_pretrained(f"{architecture}.*")
    return f"known: {', '.join(known)}" if known else f"{architecture} works, without any"
