"""Gives a module's meta parameters and buffers their values, keeping the objects they are."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.layers import stateless_random
from msam_scale.materialization.recipes import drop_unused_recipes, recipe_of, replay

_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def check_can_materialize(model: nn.Module) -> None:
    """Makes sure that every meta tensor of a model can get values, before anything starts.

    Raises:
        UserError: naming the layers whose values nothing would make.
    """
    uncovered = []
    for name, module in model.named_modules():
        _names[module] = name
        if _without_recipe(module) and not _resets(module):
            uncovered.append(name or type(module).__name__)
    if uncovered:
        raise UserError(
            f"the model is on the meta device, and {', '.join(uncovered[:5])} "
            f"({len(uncovered)} in all) cannot make values of its own: it has no "
            "reset_parameters(); build the model under msam_scale.deferred_initialization() "
            "instead of torch.device('meta'), which works with any constructor"
        )


def materialize(module: nn.Module, *, seed: int) -> None:
    """Gives everything on the meta device inside `module` its values, on the CPU.

    Tensors from `deferred_initialization` get what their recipes say. Layers from a plain
    `torch.device("meta")` call their `reset_parameters()` under a seed of their own, derived from
    the run's and from their place in the model, so that the order of layers does not matter.
    Parameters stay the same objects; ties stay ties. What has values already is left alone.

    Args:
        module: a model or a part of it that `check_can_materialize` has seen.
        seed: the run's.
    """
    for one in module.modules():
        for name, tensor in list(_own_tensors(one)):
            if tensor.is_meta and recipe_of(tensor) is not None:
                _give_values(one, name, tensor, replay(tensor))
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
        if tensor.is_meta and recipe_of(tensor) is None
    }


def _resets(module: nn.Module) -> bool:
    return callable(getattr(module, "reset_parameters", None))


def _reset(module: Any, *, seed: int) -> None:
    for name, tensor in _without_recipe(module).items():
        _give_values(module, name, tensor, torch.empty_like(tensor, device="cpu"))
    key = stateless_random.key(seed, device=torch.device("cpu"))
    for part in _names[module].encode("utf-8"):
        key = stateless_random.fold_in(key, part)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key[0]))
        module.reset_parameters()


def _give_values(module: nn.Module, name: str, tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Swaps what the two objects are, since others refer to `tensor`."""
    values = values.detach()
    if isinstance(tensor, nn.Parameter):
        values = nn.Parameter(values, requires_grad=tensor.requires_grad)
    values.__dict__.update(tensor.__dict__)
    if isinstance(module, nn.RNNBase):
        setattr(module, name, values)  # it holds weak references, which a swap would break
    else:
        torch.utils.swap_tensors(tensor, values)
