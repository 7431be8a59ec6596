"""Weights to start from, out of safetensors files: no code comes with them, unlike in a pickle."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from data_pipelines.errors import UserError
from msam_scale.checkpoint import check_names, find_checkpoint, read_weights
from msam_scale.models.request import ModelRequest

_SUFFIX = ".safetensors"
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# Parameters are registered several times where they are tied or replaced.
_TIMES_LARGER, _MORE_TENSORS = 4, 1000
_DRAWN = {
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.fill_,
    torch.Tensor.zero_,
    torch.Tensor.copy_,
    torch.Tensor.mul_,
    torch.Tensor.add_,
    torch.Tensor.div_,
}
# Settings whose numbers become lists before there is a layer.
_OF_LAYERS, _OF_CLASSES = re.compile("depth|layer|block"), re.compile("classes|label")


_WORKS = "a .safetensors file works, and the folder of a checkpoint"


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a file's or checkpoint's tensors, without reading the tensors.

    Raises:
        UserError: it is neither, or not there.
    """
    with _explained_reading(path):
        if path.is_dir():
            saved = read_weights(find_checkpoint(path), verifies=False)
            return {name: tuple(saved.shape(name)) for name in saved}
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def saved_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file or a checkpoint.

    Raises:
        UserError: they cannot be read.
    """
    with _explained_reading(path):
        return dict(read_weights(find_checkpoint(path))) if path.is_dir() else load_file(path)


@contextmanager
def _explained_reading(path: Path) -> Iterator[None]:
    if not path.exists():
        raise UserError(f"model.weights: {path} is not there; {_WORKS}")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"model.weights: {path} is a pipe or a device; {_WORKS}")
    if path.is_file() and path.suffix != _SUFFIX:
        raise UserError(
            f"model.weights: {path} does not end with {_SUFFIX}; {_WORKS}"
            f"{_how_to_convert(path) if path.suffix in _PICKLES else ''}"
        )
    try:
        yield
    except (OSError, SafetensorError, UserError) as error:
        raise UserError(f"model.weights: {path} cannot be read: {error}; {_WORKS}") from error


def _how_to_convert(path: Path) -> str:
    return (
        f'. It is a pickle, which may run code; python -c "import torch; from safetensors.torch '
        f"import save_file; w = torch.load('{path}', weights_only=True); save_file(w.get("
        f"'state_dict', w.get('model', w)), '{path.with_suffix(_SUFFIX)}')\" converts it"
    )


class _WithoutValues(TorchFunctionMode):
    """Initial values are not drawn, which tensors on the meta device do not have anyway.

    torch has such drawing in Python, whose import takes seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__ or func in _DRAWN:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_fits(request: ModelRequest, build: Callable[[ModelRequest], nn.Module]) -> None:
    """Refuses a model that is not the one of `request.checkpoint`, before it takes any memory.

    What a checkpoint says of its model may be any number. The model is built on the meta device,
    where it takes no memory but for its layers, and those are counted.

    Args:
        request: with a checkpoint.
        build: what makes the model; one that cannot do so without values is left to those who load
            the checkpoint.

    Raises:
        UserError: it is of another model.
    """
    assert request.checkpoint is not None
    saved = read_weights(request.checkpoint, verifies=False)
    shapes = [saved.shape(name) for name in saved]
    most = _TIMES_LARGER * len(saved) + _MORE_TENSORS
    widest = max((size for shape in shapes if shape.numel() for size in shape), default=0)
    limits = {_OF_LAYERS: most, _OF_CLASSES: widest}
    stated = {"num_classes": request.num_classes, **request.arguments, **(request.settings or {})}
    for name, value in stated.items():
        numbers = value if isinstance(value, list) else [value]
        total = sum(number for number in numbers if type(number) is int)
        if any(total > limit for words, limit in limits.items() if words.search(name)):
            raise UserError(
                f"{request.checkpoint}: of another model: {name} of {total} is more than its "
                f"{len(saved)} tensors can have"
            )
    count = itertools.count()

    def look(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if next(count) > most:
            raise UserError(
                f"{request.checkpoint}: of another model: it holds {len(saved)} tensors, and "
                f"{request.name} has more than {most}"
            )

    registered = register_module_parameter_registration_hook(look)
    try:
        with torch.device("meta"), _WithoutValues():
            model = build(request)
    except UserError:
        raise
    except Exception:
        return
    finally:
        registered.remove()
    check_names(saved, expected=model.state_dict(), types=False)


def first_lines(error: Exception) -> str:
    """What an exception of a library says, in one short line."""
    return " ".join(str(error).splitlines()[:2])[:300] or type(error).__name__


def num_outputs(shapes: Mapping[str, Sequence[int]], *, heads: Sequence[str]) -> int:
    """The number of classes that a file's head was trained for; 0 where the file has no head.

    Args:
        shapes: of the file's tensors.
        heads: names of the model's last layers.
    """
    found = (shapes.get(f"{head}.weight", ()) for head in heads)
    return next((shape[0] for shape in found if shape), 0)


@contextmanager
def explained_misfit(path: Path, *, name: str) -> Iterator[None]:
    """Turns what torch and timm raise about other names or shapes into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AssertionError,
        AttributeError,
    ) as error:
        # torch lists every tensor; the first ones tell which model the file is of.
        lines = str(error).splitlines()
        reason = " ".join(line.strip() for line in lines[:3])
        raise UserError(
            f"model.weights: {path} does not fit model.name: {name}: {reason[:300]}; "
            "weights of the same model with the same model.args work"
        ) from error


def load_weights(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, heads: Sequence[str], num_classes: int
) -> Sequence[str]:
    """Copies weights into a model, whose head keeps its own initial values where it differs.

    Args:
        model: gets the values, in its own number format.
        state: tensors by the model's names.
        heads: names of the model's last layers.
        num_classes: of the data set that `state` was trained on; 0: it has no head.

    Returns:
        Those of `heads` that keep their initial values.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape; a head of as many classes as
            the model's is no exception.
    """
    layers = tuple(f"{head}." for head in heads)
    own = model.state_dict()
    is_anew = num_classes != num_outputs({name: t.shape for name, t in own.items()}, heads=heads)
    if is_anew:
        kept = {name: tensor for name, tensor in own.items() if name.startswith(layers)}
        others = {name: t for name, t in state.items() if not name.startswith(layers)}
        state = {**others, **kept}
    model.load_state_dict(state, strict=True)
    return heads if is_anew else ()
