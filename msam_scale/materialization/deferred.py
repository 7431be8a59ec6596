"""Building a model without memory: the context, and what its parameters are until they have values.

Outside the context nothing records what is done to a tensor, and on the meta device it would be
done to nothing. So parameters and buffers change class, as torch's uninitialized parameters do, and
refuse whatever needs or changes values.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from data_pipelines.errors import UserError
from msam_scale.materialization.recipes import drop_unused_recipes, replay
from msam_scale.materialization.recorder import Recorder, is_deferred, is_recording

_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]
_IS_CPU = torch.Tensor.is_cpu.__get__  # type: ignore[attr-defined]
_DEVICE = torch.Tensor.device.__get__

# They do so without an operator.
_READ_MEMORY = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}

# Properties that are tensors themselves, or that change what a tensor is.
_PROPERTIES_WITH_VALUES = {
    getattr(getattr(torch.Tensor, name), access)
    for name in ("data", "grad", "T", "mT", "H", "mH", "real", "imag")
    for access in ("__get__", "__set__")
}
_METHODS_WITHOUT_VALUES = {
    getattr(torch.Tensor, name)
    for name in (
        "__hash__",
        "__len__",
        "__repr__",
        "dim",
        "element_size",
        "get_device",
        "is_complex",
        "is_contiguous",
        "is_conj",
        "is_floating_point",
        "is_neg",
        "is_signed",
        "ndimension",
        "nelement",
        "numel",
        "requires_grad_",
        "size",
        "storage_offset",
        "stride",
        "untyped_storage",
        "detach",  # what `state_dict` holds
    )
}


@contextmanager
def deferred_initialization() -> Iterator[None]:
    """Inside, models are built whose large parameters and buffers take no memory yet.

    They are on the meta device, each with the recipe of its values; `msam_scale.initialize` follows
    the recipes block by block. The values are those that building the model without this would
    give under the same seed, bit for bit, and generators are left where that would leave them.
    Tensors of fewer than 1024 elements have their values at once.

    Until then, whatever needs or changes the values of a parameter raises a UserError; conversions
    and further changes of weights belong inside. What the constructor names the meta device for
    has no recipe.

    Raises:
        UserError: the constructor does something with a deferred tensor that cannot be repeated.
    """
    if is_recording():
        yield
        return
    modules: dict[int, weakref.ref[nn.Module]] = {}

    def note(module: nn.Module, name: str, value: Any) -> None:
        modules[id(module)] = weakref.ref(module)

    recorder = Recorder()
    with ExitStack() as stack:
        for register in (
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
            register_module_module_registration_hook,
        ):
            stack.callback(register(note).remove)
        stack.enter_context(_SeenAsCpu(recorder))
        stack.enter_context(recorder)
        yield
    for reference in modules.values():
        if (module := reference()) is not None:
            _guard(module)
    drop_unused_recipes()


def deferred_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A module's own deferred parameters, buffers and other tensors, with their names."""
    own = {**module._parameters, **module._buffers}
    for name, value in [*own.items(), *vars(module).items()]:
        if name not in ("_parameters", "_buffers", "_modules"):
            for leaf in tree_leaves(value):
                if is_deferred(leaf):
                    yield name, leaf


class DeferredTensor(torch.Tensor):
    """A buffer without values yet. Its shape, type and names can be read, nothing else."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Lets pass what needs no values."""
        if _needs_values(func, caller=sys._getframe(1).f_globals.get("__name__")):
            raise UserError(
                f"{_name_of(func)}: this tensor has no values before msam_scale.initialize gives "
                "them; do this inside deferred_initialization, or after initialize"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class DeferredParameter(DeferredTensor, nn.Parameter):
    """A parameter without values yet. Its shape, type and names can be read, nothing else."""


_GUARDED: dict[type[torch.Tensor], type[torch.Tensor]] = {
    torch.Tensor: DeferredTensor,
    nn.Parameter: DeferredParameter,
}
_UNGUARDED = {guarded: plain for plain, guarded in _GUARDED.items()}


def _guard(module: nn.Module) -> None:
    for _, tensor in deferred_tensors(module):
        tensor.__class__ = _GUARDED.get(type(tensor), type(tensor))


def unguard(tensor: torch.Tensor) -> None:
    """Makes a deferred tensor the class it had when the model was built."""
    tensor.__class__ = _UNGUARDED.get(type(tensor), type(tensor))


def _needs_values(func: Any, *, caller: str | None) -> bool:
    if func == _IS_META:
        # Functions of torch.nn.init ask this and then return without a word.
        return caller == nn.init.__name__
    is_property = type(func).__name__ == "method-wrapper"
    return func in _PROPERTIES_WITH_VALUES or not (is_property or func in _METHODS_WITHOUT_VALUES)


def _name_of(func: Any) -> str:
    if func == _IS_META:
        return nn.init.__name__
    if type(func).__name__ == "method-wrapper":
        return str(func.__self__.__name__)
    return getattr(func, "__name__", str(func))


class _SeenAsCpu(TorchFunctionMode):
    """Constructors see deferred tensors on the CPU, as without this; many leave meta tensors alone.

    It also serves what reads memory without an operator.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and is_deferred(args[0]):
            if func == _IS_META:
                return False
            if func == _IS_CPU:
                return True
            if func == _DEVICE:
                return torch.device("cpu")
            if func is torch.Tensor.__deepcopy__:
                return _deep_copy(*args)
            if func in _READ_MEMORY:
                with self._recorder.paused():
                    result = func(replay(args[0]), *args[1:], **kwargs)
                if isinstance(result, np.ndarray):
                    result.setflags(write=False)  # what is written there would not be recorded
                return result
        if _is_meta(kwargs.get("device")):
            with self._recorder.paused():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _deep_copy(tensor: torch.Tensor, memo: dict[int, Any]) -> Any:
    """As `Tensor.__deepcopy__`, which copies memory without an operator."""
    if id(tensor) not in memo:
        copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        copied.__dict__.update(copy.deepcopy(tensor.__dict__, memo))
        memo[id(tensor)] = copied
    return memo[id(tensor)]
