"""Gives a module's meta parameters and buffers their values, keeping the objects they are."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError, a_few
from msam_scale.layers import stateless_random
from msam_scale.materialization.deferred import deferred_tensors, unguard
from msam_scale.materialization.recipes import Recipe, drop_unused_recipes, replay
from msam_scale.materialization.recorder import is_deferred, is_recording

_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NOT_SET = -1
_WAY_OUT = (
    "build the model under msam_scale.deferred_initialization() instead of torch.device('meta'), "
    "which works with any constructor"
)


def check_can_materialize(model: nn.Module) -> None:
    """Makes sure that every meta tensor of a model can get values, before anything starts.

    Raises:
        UserError: naming the layers whose values nothing would make.
    """
    if is_recording():
        raise UserError(
            "model: still inside deferred_initialization; leave its `with` block before initialize"
        )
    uncovered = []
    for name, module in model.named_modules():
        _names[module] = name
        if _without_recipe(module) and not _resets(module):
            uncovered.append(name or type(module).__name__)
    if uncovered:
        raise UserError(
            f"the model is on the meta device, and {a_few(uncovered)} cannot make values of their "
            "own: no reset_parameters(); "
            f"{_WAY_OUT}"
        )


def materialize(module: nn.Module, *, seed: int) -> None:
    """Gives everything on the meta device inside `module` its values, on the CPU.

    Tensors from `deferred_initialization` get what their recipes say. Layers from a plain
    `torch.device("meta")` call their `reset_parameters()` under a seed of their own, derived from
    the run's and from their place in the model, so that the order of layers does not matter.
    Parameters stay the same objects (those of recurrent layers excepted) and ties stay ties. What
    has values already is left alone. At most one tensor more than the module is in memory, besides
    what the recipe of a tensor itself needs at once.

    Args:
        module: a model or a part of it that `check_can_materialize` has seen.
        seed: the run's.

    Raises:
        UserError: a `reset_parameters()` leaves some of its layer's tensors without values, or
            changes those of other layers; or a tensor without values is looked at by a view.
    """
    memories: dict[Recipe, torch.Tensor] = {}
    given: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for module_name, one in module.named_modules():
        for name, tensor in list(deferred_tensors(one)):
            if id(tensor) not in given:
                values = replay(tensor, memories=memories)
                where = f"{module_name}.{name}" if module_name else name
                given[id(tensor)] = tensor, _give_values(one, name, tensor, values, where=where)
            elif name in one._parameters:
                setattr(one, name, given[id(tensor)][1])  # a tie of recurrent layers
        if _without_recipe(one):
            _reset(one, seed=seed)
    drop_unused_recipes()


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _without_recipe(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in _own_tensors(module)
        if tensor.is_meta and not is_deferred(tensor)
    }


def _resets(module: nn.Module) -> bool:
    return callable(getattr(module, "reset_parameters", None))


def _reset(module: Any, *, seed: int) -> None:
    """Calls `reset_parameters`, and sees to it that it sets these tensors and no others."""
    assert module in _names, "check_can_materialize has seen every module"
    name, kind = _names[module], type(module).__name__
    missing = _without_recipe(module)
    present = [(one, one.detach().clone()) for _, one in _own_tensors(module) if not one.is_meta]
    for tensor_name, tensor in missing.items():
        values = torch.empty_like(tensor, device="cpu")
        _bits(values).fill_(_NOT_SET)
        _give_values(module, tensor_name, tensor, values, where=f"{name}.{tensor_name}")
    inner = [
        (one, one._version)
        for child in module.modules()
        if child is not module
        for _, one in _own_tensors(child)
    ]
    key = stateless_random.key(seed, device=torch.device("cpu"))
    for part in name.encode("utf-8"):
        key = stateless_random.fold_in(key, part)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key[0]))
        module.reset_parameters()
    if any(one._version != version for one, version in inner):
        raise UserError(
            f"{name or kind}: its reset_parameters() also changes the layers inside it, which may "
            f"be laid out on several ranks already; {_WAY_OUT}"
        )
    for tensor_name in missing:
        if (_bits(getattr(module, tensor_name).detach()) == _NOT_SET).any():
            raise UserError(
                f"{name or kind}: its reset_parameters() leaves {tensor_name} without values; "
                f"{_WAY_OUT}"
            )
    with torch.no_grad():
        for one, values in present:
            one.copy_(values)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor as whole numbers."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGERS[tensor.element_size()])


def _give_values(
    module: nn.Module, name: str, tensor: torch.Tensor, values: torch.Tensor, *, where: str
) -> torch.Tensor:
    """Swaps what the two objects are, since others refer to `tensor`; returns what has values."""
    unguard(tensor)
    values = values.detach()
    if isinstance(tensor, nn.Parameter):
        values = nn.Parameter(values, requires_grad=tensor.requires_grad)
    values.__class__ = type(tensor)
    values.__dict__.update(tensor.__dict__)
    if isinstance(module, nn.RNNBase) and name in module._parameters:
        setattr(module, name, values)  # it holds weak references, which a swap would break
        return values
    try:
        torch.utils.swap_tensors(tensor, values)
    except RuntimeError as error:
        raise UserError(
            f"{where}: something else refers to this tensor without values, such as a view that "
            "autograd follows; make the view from .detach(), or build the model normally"
        ) from error
    return tensor
