"""Whole tensors out of a model and its optimizer, and back into whatever part a rank holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from data_pipelines.errors import UserError

# Between a parameter's name and the name of its state: dots occur in both.
STATE_SEPARATOR = "//"
# What torch's and DeepSpeed's optimizers keep as one number a parameter. A parameter without
# dimensions has other state of the same shape.
STATE_NUMBERS = frozenset({"step", "mu_product", "eta", "mu"})


def full_state_dict(model: nn.Module, *, keeps: bool) -> dict[str, torch.Tensor]:
    """Parameters and buffers under their own names as CPU tensors, one gathered after the other.

    Args:
        model: replicated, or with DTensors. Collective in the second case.
        keeps: whether this rank wants the result; without, it takes part and returns nothing.

    Raises:
        UserError: the model has extra state that is no tensor.
    """
    whole: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{name}: the model's extra state is a {type(value).__name__}; "
                "only tensors can be saved"
            )
        tensor = _whole(value)
        if keeps:
            whole[name] = tensor.to("cpu", copy=True)
    return whole


def full_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, keeps: bool
) -> dict[str, torch.Tensor]:
    """The state as CPU tensors named `PARAMETER//STATE`; numbers become 0-dimensional tensors."""
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in _trained(optimizer, model):
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is None:
                continue
            tensor = _whole(torch.as_tensor(value))
            if keeps:
                whole[f"{name}{STATE_SEPARATOR}{key}"] = tensor.to("cpu", copy=True).contiguous()
    return whole


def load_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, torch.Tensor],
) -> None:
    """Copies whole tensors into the model and the optimizer, whatever part of them is here.

    Args:
        optimizer: settings such as the learning rate stay as they are.
        model: its parameters and buffers are written in place.
        weights: every name of the model's state dict.
        optimizer_state: what `full_optimizer_state` gave.

    Raises:
        UserError: the optimizer's state belongs to other parameters.
    """
    named = list(_trained(optimizer, model))
    keys = state_keys(optimizer_state, names=[name for name, _ in named])
    with torch.no_grad():
        for name, own in model.state_dict().items():
            own.copy_(_part(weights[name], like=own))
    position = {
        parameter: index
        for index, parameter in enumerate(
            parameter for group in optimizer.param_groups for parameter in group["params"]
        )
    }
    content = optimizer.state_dict()
    content["state"] = {
        position[parameter]: {
            key: _part(optimizer_state[f"{name}{STATE_SEPARATOR}{key}"], like=parameter)
            for key in keys[name]
        }
        for name, parameter in named
        if name in keys
    }
    optimizer.load_state_dict(content)


def state_keys(
    optimizer_state: Mapping[str, torch.Tensor], *, names: Sequence[str]
) -> dict[str, list[str]]:
    """Which states of each parameter there are, from tensors named `PARAMETER//STATE`.

    Raises:
        UserError: they are not those of exactly the parameters of these names.
    """
    keys: dict[str, list[str]] = {}
    for name in optimizer_state:
        parameter_name, _, key = name.rpartition(STATE_SEPARATOR)
        keys.setdefault(parameter_name, []).append(key)
    if unknown := keys.keys() - set(names):
        raise UserError(f"holds the state of {sorted(unknown)[0]}, which is not trained")
    if keys and (missing := set(names) - keys.keys()):
        raise UserError(f"lacks the state of {sorted(missing)[0]}")
    return keys


def _trained(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> Iterator[tuple[str, torch.Tensor]]:
    names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise UserError("the optimizer holds a parameter that is not one of the model's")
            if parameter.requires_grad:
                yield names[parameter], parameter


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part(whole: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """What of a whole tensor belongs where `like` is; one of its shape is laid out as it is.

    Fused optimizers walk through a parameter and its state in the order of memory.
    """
    if whole.shape != like.shape:
        return whole
    if not isinstance(like, DTensor):
        return torch.empty_like(like, dtype=whole.dtype).copy_(whole)
    return distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
