"""Watches a model's constructor and keeps the recipe of each large tensor instead of its values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from data_pipelines.errors import UserError
from msam_scale.materialization.recipes import (
    Operation,
    Recipe,
    Reference,
    recipe_of,
    register_recipe,
    replay,
)

# Tensors with fewer elements are made at once: constructors read numbers out of small ones, and
# together they are a thousandth of a large model.
_FEWEST_ELEMENTS = 1024
_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]
_DEVICE = torch.Tensor.device.__get__

_aten = torch.ops.aten
# They give the host a value, or memory that it reads.
_NEEDS_VALUES = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
}


@contextmanager
def deferred_initialization() -> Iterator[None]:
    """Inside, models are built whose large parameters and buffers take no memory yet.

    They are on the meta device, each with the recipe of its values; `msam_scale.initialize` follows
    the recipes block by block. The values are those that building the model without this would
    give under the same seed, bit for bit, and the generator is left where that would leave it.

    Raises:
        UserError: the constructor does something with a deferred tensor that cannot be repeated.
    """
    with _SeenAsCpu(), _Recorder():
        yield


class _SeenAsCpu(TorchFunctionMode):
    """Deferred tensors say that they are on the CPU: torch.nn.init leaves meta tensors alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func == _IS_META and _is_deferred(args[0]):
            return False
        if func == _DEVICE and _is_deferred(args[0]):
            return torch.device("cpu")
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        deferred = [leaf for leaf in tree_leaves((args, kwargs)) if _is_deferred(leaf)]
        if deferred:
            return _with_deferred_inputs(func, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if tensors or not _makes_a_tensor_here(func, kwargs):
            return func(*args, **kwargs)
        return _made_from_nothing(func, args, _on_device(kwargs, "cpu"))


def _made_from_nothing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    shape_only = func(*args, **{**kwargs, "device": "meta"})
    if shape_only.numel() < _FEWEST_ELEMENTS:
        return func(*args, **kwargs)
    state = _advance(func, args, kwargs) if _draws(func) else None
    register_recipe(shape_only, Recipe([Operation(func, args, kwargs, state)]))
    return shape_only


def _with_deferred_inputs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func in _NEEDS_VALUES:
        return func(*_real(args), **_real(kwargs))
    written = _written_arguments(func, args, kwargs)
    if any(not _is_deferred(tensor) for tensor in written):
        return func(*_real(args), **_real(kwargs))
    _check_device(func, kwargs)
    state = _advance(func, _stand_ins(args), _stand_ins(kwargs)) if _draws(func) else None
    operation = Operation(func, _references(args), _references(_on_device(kwargs, "cpu")), state)
    result = func(*_on_meta(args), **_on_meta(_on_device(kwargs, "meta")))
    if written:
        for tensor in written:
            recipe = recipe_of(tensor)
            assert recipe is not None
            recipe.operations.append(operation)
        return _same_objects(result, args)
    known = {
        StorageWeakRef(leaf.untyped_storage())
        for leaf in tree_leaves((args, kwargs))
        if _is_deferred(leaf)
    }
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    for number, output in enumerate(outputs):
        if StorageWeakRef(output.untyped_storage()) not in known:  # else a view: nothing new
            register_recipe(output, Recipe([operation], output=number))
    return result


def _is_deferred(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta and recipe_of(value) is not None


def _makes_a_tensor_here(func: Any, kwargs: dict[str, Any]) -> bool:
    # The meta device is where constructors find their parameters, and put further tensors.
    names = {argument.name for argument in func._schema.arguments}
    device = kwargs.get("device")
    here = device is None or torch.device(device).type in ("cpu", "meta")
    return {"device", "dtype"} <= names and here


def _on_device(kwargs: dict[str, Any], device: str) -> dict[str, Any]:
    """The arguments with another device, where they name one."""
    return {**kwargs, "device": device} if kwargs.get("device") is not None else kwargs


def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _advance(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """Draws for real, so that what follows draws what it would have; returns the state before."""
    if kwargs.get("generator") is not None:
        raise UserError(
            f"{func}: draws from a generator of its own, which a deferred initialization cannot "
            "repeat; build this model without it"
        )
    state = torch.get_rng_state()
    func(*args, **kwargs)
    return state


def _written_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    written: list[Any] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        written += [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return written


def _same_objects(result: Any, args: tuple[Any, ...]) -> Any:
    # An operation in place returns its first argument.
    return args[0] if isinstance(result, torch.Tensor) and result is not args[0] else result


def _map_deferred(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    return tree_map(lambda leaf: change(leaf) if _is_deferred(leaf) else leaf, tree)


def _real(tree: Any) -> Any:
    return _map_deferred(tree, replay)


def _references(tree: Any) -> Any:
    def kept(leaf: Any) -> Any:
        if _is_deferred(leaf):
            return Reference.to(leaf)
        # As it is now: the constructor may go on to change it.
        return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf

    return tree_map(kept, tree)


def _stand_ins(tree: Any) -> Any:
    return _map_deferred(
        tree, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu")
    )


def _on_meta(tree: Any) -> Any:
    return tree_map(
        lambda leaf: (
            leaf.to("meta")
            if isinstance(leaf, torch.Tensor) and not leaf.is_meta and leaf.dim()
            else leaf
        ),
        tree,
    )


def _check_device(func: Any, kwargs: dict[str, Any]) -> None:
    device = kwargs.get("device")
    if device is not None and torch.device(device).type not in ("cpu", "meta"):
        raise UserError(
            f"{func}: moves a deferred tensor to {device}; build the model on the CPU, initialize "
            "moves it"
        )
