"""Weights to start from, out of a safetensors file: no code comes with them, unlike in a pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from data_pipelines.errors import UserError

_SUFFIX = ".safetensors"


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a file's tensors, without reading the tensors.

    Raises:
        UserError: it is no safetensors file, or not there.
    """
    works = "a .safetensors file works, such as model.safetensors of a checkpoint"
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise UserError(f"model.weights: {path} {what}; {works}")
    if path.suffix != _SUFFIX:
        raise UserError(f"model.weights: {path} does not end with {_SUFFIX}; {works}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.weights: {path} cannot be read: {error}; {works}") from error


def num_outputs(shapes: Mapping[str, Sequence[int]], *, heads: Sequence[str]) -> int:
    """The number of classes that a file's head was trained for; 0 where the file has no head.

    Args:
        shapes: of the file's tensors.
        heads: names of the model's last layers.
    """
    return next((shapes[f"{head}.weight"][0] for head in heads if f"{head}.weight" in shapes), 0)


@contextmanager
def explained_misfit(path: Path, *, name: str) -> Iterator[None]:
    """Turns what torch and timm raise about other names or shapes into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        # torch lists every tensor; the first ones tell which model the file is of.
        lines = str(error).splitlines()
        reason = " ".join(line.strip() for line in lines[:3])
        raise UserError(
            f"model.weights: {path} does not fit model.name: {name}: {reason[:300]}; "
            "weights of the same model with the same model.args work"
        ) from error


def load_weights(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, heads: Sequence[str], num_classes: int
) -> None:
    """Copies weights into a model, whose head keeps its own initial values where it differs.

    Args:
        model: gets the values, in its own number format.
        state: tensors by the model's names.
        heads: names of the model's last layers.
        num_classes: of the data set that `state` was trained on; 0: it has no head.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape; a head of as many classes as
            the model's is no exception.
    """
    layers = tuple(f"{head}." for head in heads)
    own = model.state_dict()
    if num_classes != num_outputs({name: t.shape for name, t in own.items()}, heads=heads):
        kept = {name: tensor for name, tensor in own.items() if name.startswith(layers)}
        others = {name: t for name, t in state.items() if not name.startswith(layers)}
        state = {**others, **kept}
    model.load_state_dict(state, strict=True)
