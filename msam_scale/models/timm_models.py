"""Models of timm (PyTorch Image Models) by name."""

from __future__ import annotations

import difflib

import timm
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.models.request import ModelRequest


def check_timm_name(name: str) -> None:
    """Raises a UserError with the nearest names where timm knows no such model."""
    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all names"
    raise UserError(f"model.name: {name!r} is not a model of timm {timm.__version__}; {hint}")


def build_timm_model(request: ModelRequest) -> nn.Module:
    """`timm.create_model` with the data's classes and channels."""
    check_timm_name(request.name)
    arguments = {
        "num_classes": request.num_classes,
        "in_chans": request.num_channels,
        **request.arguments,
    }
    model = timm.create_model(request.name, **arguments)
    assert isinstance(model, nn.Module)
    return model
