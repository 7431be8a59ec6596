"""Watches a model's constructor and keeps the recipe of each large tensor instead of its values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
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
FEWEST_ELEMENTS = 1024

# They set their first argument whatever it was.
_OVERWRITE = {
    f"aten::{name}" for name in ("copy_", "fill_", "normal_", "random_", "uniform_", "zero_")
}
# Their schemas do not tell that they write running statistics.
_WRITE_UNDECLARED = {
    f"aten::{name}" for name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
}

_active: list[Recorder] = []


def is_recording() -> bool:
    """Whether this is inside a `deferred_initialization`."""
    return bool(_active)


class Recorder(TorchDispatchMode):
    """Below autograd: large tensors become meta tensors with a recipe."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._paused = False
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def __enter__(self) -> Recorder:
        """Starts to record."""
        _active.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stops recording."""
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        _active.remove(self)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, what is made is what it would be without a recorder."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def scratch_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape, strides and type on the CPU; there is one at a time.

        Allocating it anew each time would let the process grow by the whole model: small objects
        settle in the place of a tensor that was freed, and the next one no longer fits.
        """
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        num_bytes = (last + 1) * tensor.element_size()
        if self._scratch.numel() < num_bytes:
            self._scratch = torch.empty(num_bytes, dtype=torch.uint8)
        part = torch.empty(0, dtype=tensor.dtype)
        return part.set_(self._scratch.untyped_storage(), 0, tensor.shape, tensor.stride())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Records the operator's call where it makes a tensor or takes a deferred one."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        deferred = [tensor for tensor in tensors if is_deferred(tensor)]
        if not self._paused and _reads_no_values(func, tensors) and _is_here(kwargs, tensors):
            args, kwargs = _shapes_only(args), _shapes_only({**kwargs, "device": "cpu"})
            return _made_from_nothing(func, args, kwargs)
        if deferred:
            return _with_deferred_inputs(func, args, kwargs)
        return func(*args, **kwargs)


def is_deferred(value: Any) -> bool:
    """Whether it is a tensor on the meta device that has a recipe."""
    return isinstance(value, torch.Tensor) and recipe_of(value) is not None


def _reads_no_values(func: Any, tensors: list[torch.Tensor]) -> bool:
    """Whether the operator makes a tensor from numbers, or from no more than a tensor's shape."""
    if not {"device", "dtype"} <= {argument.name for argument in func._schema.arguments}:
        return False
    name: str = func._schema.name.removeprefix("aten::")
    return not tensors or name.endswith("_like") or name.startswith("new_")


def _is_here(kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> bool:
    """Whether what the operator makes is meant to be on the CPU."""
    device = kwargs.get("device")
    if device is not None:
        # The meta device is where functions of torch see deferred tensors, and put further ones;
        # where the constructor names it itself, the recorder pauses.
        return torch.device(device).type in ("cpu", "meta")
    return all(is_deferred(tensor) or tensor.device.type == "cpu" for tensor in tensors)


def _made_from_nothing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    shape_only = func(*args, **_without_generator({**kwargs, "device": "meta"}))
    if shape_only.numel() < FEWEST_ELEMENTS:
        return func(*args, **kwargs)
    operation = _operation(func, args, kwargs)
    if _draws(func):
        func(*args, **kwargs)  # what follows draws what it would have
    register_recipe(shape_only, Recipe([operation]))
    return shape_only


def _with_deferred_inputs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    device = kwargs.get("device")
    if device is not None and torch.device(device).type not in ("cpu", "meta"):
        raise UserError(
            f"{func} moves a deferred tensor to {device}; build the model on the CPU, initialize "
            "moves it"
        )
    if func._schema.name in _WRITE_UNDECLARED:
        raise _unsupported(func)
    written = _written_arguments(func, args, kwargs)
    if written:
        return _written_in_place(func, args, kwargs, written)
    if torch.Tag.data_dependent_output in func.tags:
        return func(*_real(args), **_real(kwargs))
    try:
        result = func(*_on_meta(args), **_on_meta(kwargs))
    except NotImplementedError:
        # The shape of the result depends on values, or torch cannot tell it.
        return func(*_real(args), **_real(kwargs))
    operation = _operation(func, args, kwargs)
    if _draws(func):
        func(*_real(args), **_real(kwargs))
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    for number, output in enumerate(outputs):
        if output.layout is not torch.strided:
            raise _unsupported(func)
        if not is_deferred(output):  # else a view, which adds nothing
            register_recipe(output, Recipe([operation], output=number))
    return result


def _written_in_place(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[torch.Tensor]
) -> Any:
    recipes = list(dict.fromkeys(recipe for one in written if (recipe := recipe_of(one))))
    if not recipes:
        return func(*_real(args), **_real(kwargs))
    if func.overloadpacket is torch.ops.aten.set_:
        return func(*args, **kwargs)  # changes which memory it is, not what is in there
    returned = len(func._schema.returns)
    if returned and (
        returned not in (1, len(written))
        or any(one.alias_info is None for one in func._schema.returns)
    ):
        raise _unsupported(func)
    operation = _operation(func, args, kwargs)
    if all(map(is_deferred, written)):
        try:
            func(*_on_meta(args), **_on_meta(kwargs))  # it may change the shape
        except NotImplementedError as error:
            raise _unsupported(func) from error
        if _draws(func):
            _draw(func, args, kwargs, written)
    else:
        func(*_real(args), **_real(kwargs))  # small tensors are written at once
    for recipe in recipes:
        recipe.operations.append(operation)
    if returned > 1:
        return tuple(written)
    return written[0] if returned else None


def _draw(func: Any, args: Any, kwargs: Any, written: list[torch.Tensor]) -> None:
    """Draws, so that what follows draws what it would have; the numbers are not kept."""
    [target] = written  # operators that draw in place write one tensor
    stand_in = _active[-1].scratch_like(target)

    def real(tensor: torch.Tensor) -> torch.Tensor:
        if tensor is target:
            return stand_in
        return replay(tensor) if is_deferred(tensor) else tensor

    func(*_map_tensors(args, real), **_map_tensors(kwargs, real))


def _operation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation:
    """What to repeat; called before the operator draws or writes."""
    state = None
    if _draws(func):
        state = (kwargs.get("generator") or torch.default_generator).get_state()
    overwrites = func._schema.name in _OVERWRITE and _is_whole_memory(args[0])
    kwargs = _on_device(_without_generator(kwargs), "cpu")
    return Operation(func, _references(args), _references(kwargs), state, overwrites)


def _is_whole_memory(tensor: torch.Tensor) -> bool:
    num_bytes = tensor.numel() * tensor.element_size()
    is_dense = torch.empty_like(tensor, device="meta").stride() == tensor.stride()
    return is_dense and num_bytes == tensor.untyped_storage().nbytes()


def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _on_device(kwargs: dict[str, Any], device: str) -> dict[str, Any]:
    """The arguments with another device, where they name one."""
    return {**kwargs, "device": device} if kwargs.get("device") is not None else kwargs


def _without_generator(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "generator": None} if "generator" in kwargs else kwargs


def _written_arguments(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[torch.Tensor]:
    written: list[torch.Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        written += [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return written


def _map_tensors(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)


def _real(tree: Any) -> Any:
    return _map_tensors(tree, lambda one: replay(one) if is_deferred(one) else one)


def _references(tree: Any) -> Any:
    # Others as they are now: the constructor may go on to change them.
    return _map_tensors(
        tree, lambda tensor: Reference.to(tensor) if is_deferred(tensor) else tensor.clone()
    )


def _on_meta(tree: Any) -> Any:
    def on_meta(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to("meta") if tensor.device.type == "cpu" and tensor.dim() else tensor

    tree = _map_tensors(tree, on_meta)
    return _on_device(_without_generator(tree), "meta") if isinstance(tree, dict) else tree


def _shapes_only(tree: Any) -> Any:
    def shape_of(tensor: torch.Tensor) -> torch.Tensor:
        shape, stride = tensor.shape, tensor.stride()
        return torch.empty_strided(shape, stride, dtype=tensor.dtype, device="meta")

    return _map_tensors(tree, shape_of)


def _unsupported(func: Any) -> UserError:
    return UserError(
        f"deferred_initialization cannot repeat {func} on a tensor without values; build this "
        "model without it"
    )
