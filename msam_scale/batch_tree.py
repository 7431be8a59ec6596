"""Batches as nested dicts, lists and tuples of tensors, cut along their first dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from data_pipelines.errors import UserError

Batch = Any
"""A tensor, or a dict, list or tuple of batches; every tensor has the same first dimension."""


def num_samples(batch: Batch) -> int:
    """The common first dimension of all tensors.

    Raises:
        UserError: no tensor, a tensor without dimensions, or tensors that disagree.
    """
    sizes = {}
    for path, tensor in _leaves(batch, "batch"):
        if tensor.dim() == 0:
            raise UserError(f"{path} has no dimensions; the first one must run over the samples")
        sizes[path] = tensor.shape[0]
    if not sizes:
        raise UserError("the batch holds no tensor")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{path}: {size}" for path, size in sizes.items())
        raise UserError(f"the tensors of a batch disagree on the number of samples ({listed})")
    return next(iter(sizes.values()))


def narrow(batch: Batch, start: int, length: int) -> Batch:
    """The samples `start … start + length - 1`, without a copy."""
    return _map(batch, lambda tensor: tensor.narrow(0, start, length))


def repeated(batch: Batch, times: int) -> Batch:
    """All samples, so many times over."""
    return _map(batch, lambda tensor: tensor.repeat(times, *[1] * (tensor.dim() - 1)))


def copied(batch: Batch) -> Batch:
    """The same in memory of its own."""
    return _map(batch, torch.clone)


def to_device(batch: Batch, device: torch.device, *, widen_to: torch.dtype) -> Batch:
    """Moves a batch; real tensors narrower than `widen_to` are widened, which loses nothing."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        widen = tensor.is_floating_point() and tensor.element_size() < widen_to.itemsize
        return tensor.to(device, widen_to if widen else tensor.dtype, non_blocking=True)

    return _map(batch, move)


def _map(batch: Batch, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: _map(value, function) for key, value in batch.items()}
    if hasattr(batch, "_fields"):  # a named tuple takes its fields one by one
        return type(batch)(*(_map(value, function) for value in batch))
    return type(batch)(_map(value, function) for value in batch)


def _leaves(batch: Batch, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(batch, torch.Tensor):
        yield path, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _leaves(value, f"{path}[{key!r}]")
    elif isinstance(batch, list | tuple):
        for index, value in enumerate(batch):
            yield from _leaves(value, f"{path}[{index}]")
    else:
        raise UserError(
            f"{path} is a {type(batch).__name__}; a batch is made of tensors in dicts, lists and "
            "tuples"
        )
