"""An optimizer's state by parameter name, whatever the order of its parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from data_pipelines.errors import UserError

# Between a parameter's name and the name of its state: dots occur in both.
_SEPARATOR = "//"


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, torch.Tensor]:
    """The state as CPU tensors named `PARAMETER//STATE`; plain numbers become 0-dim tensors."""
    names = _names(optimizer, model)
    return {
        f"{names[parameter]}{_SEPARATOR}{key}": torch.as_tensor(value)
        .detach()
        .to("cpu", copy=True)
        .contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: Path,
) -> None:
    """Loads what `optimizer_tensors` gave; settings such as the learning rate stay as they are.

    Raises:
        UserError: the tensors belong to other parameters.
    """
    names = _names(optimizer, model)
    state: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition(_SEPARATOR)
        state.setdefault(parameter_name, {})[key] = tensor
    if unknown := state.keys() - set(names.values()):
        raise UserError(f"{source}: holds the state of {sorted(unknown)[0]}, which is not trained")
    if state and (missing := _trained(optimizer, names) - state.keys()):
        raise UserError(f"{source}: lacks the state of {sorted(missing)[0]}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    content = optimizer.state_dict()
    content["state"] = {
        index: state[names[parameter]]
        for index, parameter in enumerate(parameters)
        if names[parameter] in state
    }
    optimizer.load_state_dict(content)


def _trained(optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]) -> set[str]:
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return {names[parameter] for parameter in parameters if parameter.requires_grad}


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[torch.Tensor, str]:
    names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise UserError("the optimizer holds a parameter that is not one of the model's")
    return names
