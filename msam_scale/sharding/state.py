"""The state of a model and its optimizer, out of whatever part a rank holds and back into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.ranks import Ranks
from msam_scale.sharding.dtensors import is_dtensor, is_in_rows
from msam_scale.sharding.pieces import (
    MODEL,
    OPTIMIZER,
    Piece,
    local_piece,
    local_range,
    saved_by,
)
from msam_scale.sharding.saved import SavedTensors

# Between a parameter's name and the name of its state: dots occur in both.
STATE_SEPARATOR = "//"
# What torch's and DeepSpeed's optimizers keep as one number a parameter. A parameter without
# dimensions has other state of the same shape.
STATE_NUMBERS = frozenset({"step", "mu_product", "eta", "mu"})


def full_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under their own names as CPU tensors, one gathered after the other.

    Args:
        model: replicated, or with DTensors. Collective in the second case.

    Raises:
        UserError: the model has extra state that is no tensor.
    """
    return {
        name.removeprefix(MODEL): _whole(value).to("cpu", copy=True)
        for name, value in model_state(model)
    }


def model_state(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers as they lie, under the names of a checkpoint.

    Raises:
        UserError: the model has extra state that is no tensor.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{name}: the model's extra state is a {type(value).__name__}; "
                "only tensors can be saved"
            )
        yield f"{MODEL}{name}", value


def optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> Iterator[tuple[str, torch.Tensor]]:
    """The optimizer's state as it lies; numbers become tensors without dimensions."""
    for name, parameter in _trained(optimizer, model):
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                yield state_name(name, key), torch.as_tensor(value)


def state_name(parameter: str, key: str) -> str:
    """The name of a parameter's state in a checkpoint."""
    return f"{OPTIMIZER}{parameter}{STATE_SEPARATOR}{key}"


def pieces_of(
    tensors: Iterable[tuple[str, torch.Tensor]], *, ranks: Ranks, shard_group_size: int
) -> list[Piece]:
    """What this rank saves of tensors that are whole on all ranks, or DTensors. Collective."""
    whole: list[Piece] = []
    sharded: list[Piece] = []
    for name, tensor in tensors:
        piece, is_whole = local_piece(name, tensor)
        (whole if is_whole else sharded).append(piece)
    return saved_by(ranks, whole=whole, sharded=sharded, shard_group_size=shard_group_size)


def load_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    weights: SavedTensors,
    optimizer_state: SavedTensors | None,
) -> None:
    """Copies saved tensors into the model and the optimizer, whatever part of them is here.

    Args:
        optimizer: settings such as the learning rate stay as they are.
        model: its parameters and buffers are written in place.
        weights: every name of the model's state dict.
        optimizer_state: tensors named `PARAMETER//STATE`; None: the optimizer's stays.

    Raises:
        UserError: the optimizer's state belongs to other parameters.
    """
    named = list(_trained(optimizer, model))
    keys = state_keys(optimizer_state or {}, names=[name for name, _ in named])
    with torch.no_grad():
        for name, own in model.state_dict().items():
            own.copy_(_part(weights, name, like=own))
    if optimizer_state is None:
        return
    position = {
        parameter: index
        for index, parameter in enumerate(
            parameter for group in optimizer.param_groups for parameter in group["params"]
        )
    }
    content = optimizer.state_dict()
    content["state"] = {
        position[parameter]: {
            key: _part(optimizer_state, f"{name}{STATE_SEPARATOR}{key}", like=parameter)
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


def kept_shapes(
    optimizer: torch.optim.Optimizer, shape: torch.Size
) -> Iterator[dict[str, tuple[int, ...]]]:
    """What each group of one of torch's optimizers keeps for a parameter of a shape.

    It is seen on an optimizer of the same class and settings that steps once, on a small parameter
    of as many dimensions. A group that takes no such parameter gives nothing.
    """
    for group in optimizer.param_groups:
        trial = torch.zeros([2] * len(shape))
        trial.grad = torch.zeros_like(trial)
        settings = {name: value for name, value in group.items() if name != "param_names"}
        try:
            of_its_kind = type(optimizer)([{**settings, "params": [trial]}])  # type: ignore[call-arg]
            of_its_kind.step()
        except (RuntimeError, ValueError):
            continue
        kept = {}
        for key, value in of_its_kind.state[trial].items():
            if value is not None:
                small = tuple(torch.as_tensor(value).shape)
                if len(small) == len(shape):
                    sizes = zip(small, shape, strict=True)
                    small = tuple(whole if size == 2 else size for size, whole in sizes)
                kept[key] = small
        yield kept


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
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def _part(saved: SavedTensors, name: str, *, like: torch.Tensor) -> torch.Tensor:
    """What of a saved tensor belongs where `like` is; one of its shape is laid out as it is.

    Fused optimizers walk through a parameter and its state in the order of memory.
    """
    if saved.shape(name) != like.shape:
        return saved[name]
    if not is_dtensor(like):
        whole = saved[name]
        return torch.empty_like(like, dtype=whole.dtype).copy_(whole)
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not is_in_rows(like):
        whole = saved[name].to(like.device)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    local = saved.elements(name, *local_range(like))
    return DTensor.from_local(
        local.view(like.to_local().shape).to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
