"""Batches as nested dicts, lists and tuples of tensors, cut along their first dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from data_pipelines.errors import UserError

Batch = Any
"""A tensor, or a dict, list or tuple of batches; every tensor has the same first dimension.

What is no tensor but a plain value, such as None, goes to the loss as it is. A list of one entry a
sample (the boxes of each image, say) is cut by entries once `with_samples_marked` has found it.
"""

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_MOST_LISTED = 6


class Samples(list[Any]):
    """One entry a sample, of any kind; tensors in it have no dimension of samples."""


def with_samples_marked(batch: Batch, size: int) -> Batch:
    """The batch with its lists of one entry a sample as `Samples`.

    Those are lists and tuples of as many entries as there are samples: of dicts with the same keys,
    or inside the batch of anything else. `(inputs, labels)` are never two samples.

    Args:
        batch: as the caller gives it.
        size: how many samples it should have.

    Raises:
        UserError: a list inside the batch could be either.
    """
    return _marked(batch, size, "batch", is_inside=False)


def _marked(batch: Batch, size: int, path: str, *, is_inside: bool) -> Batch:
    if isinstance(batch, Mapping):
        return {
            key: _marked(value, size, f"{path}[{key!r}]", is_inside=True)
            for key, value in batch.items()
        }
    if not isinstance(batch, list | tuple):
        return batch
    if len(batch) == size and not hasattr(batch, "_fields"):
        if all(isinstance(entry, Mapping) and entry.keys() == batch[0].keys() for entry in batch):
            return Samples(batch)
        if is_inside and {tensor.shape[:1] for tensor in _tensors(batch)} != {(size,)}:
            return Samples(batch)
        if is_inside and size > 1:
            raise UserError(
                f"{path} has {size} entries of {size} rows each, as many as there are samples: are "
                "they one a sample, or do their rows run over the samples? A dict in place of the "
                "list says the latter, a dict for each entry the former"
            )
    entries = (
        _marked(entry, size, f"{path}[{index}]", is_inside=True)
        for index, entry in enumerate(batch)
    )
    return _like(batch, entries)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def num_samples(batch: Batch) -> int:
    """The common first dimension of all tensors.

    Raises:
        UserError: no tensor, a tensor without dimensions, tensors that disagree, or what cannot be
            cut by sample.
    """
    if isinstance(batch, _PLAIN):
        raise UserError(f"batch is a {type(batch).__name__}; {_WORKS}")
    sizes = {}
    for path, leaf in _leaves(batch, "batch"):
        if isinstance(leaf, Samples):
            sizes[path] = len(leaf)
            continue
        if leaf.dim() == 0:
            raise UserError(f"{path} has no dimensions; the first one must run over the samples")
        sizes[path] = leaf.shape[0]
    if not sizes:
        raise UserError("the batch holds no tensor")
    if len(set(sizes.values())) > 1:
        listed = [f"{path}: {size}" for path, size in sizes.items()]
        more = [f"{len(listed) - _MOST_LISTED} more"] if len(listed) > _MOST_LISTED else []
        raise UserError(
            "the tensors of a batch disagree on the number of samples "
            f"({', '.join(listed[:_MOST_LISTED] + more)}); {_WORKS}"
        )
    return next(iter(sizes.values()))


def narrow(batch: Batch, start: int, length: int) -> Batch:
    """The samples `start … start + length - 1`, without a copy."""
    return _map(
        batch,
        lambda tensor: tensor.narrow(0, start, length),
        of_samples=lambda samples: Samples(samples[start : start + length]),
    )


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


def _map(
    batch: Batch,
    function: Callable[[torch.Tensor], torch.Tensor],
    *,
    of_samples: Callable[[Samples], Samples] | None = None,
) -> Batch:
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, Samples) and of_samples is not None:
        return of_samples(batch)
    if isinstance(batch, Mapping):
        return {key: _map(value, function, of_samples=of_samples) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return _like(batch, (_map(value, function, of_samples=of_samples) for value in batch))
    return batch


def _like(batch: Any, values: Iterator[Any]) -> Any:
    """Such a list or tuple of these values; a named tuple takes its fields one by one."""
    return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)


_WORKS = (
    "a batch is made of tensors over the samples in dicts, lists and tuples; a list may have one "
    "entry a sample instead"
)


def _leaves(batch: Batch, path: str) -> Iterator[tuple[str, Any]]:
    """Tensors and `Samples` with their paths."""
    if isinstance(batch, torch.Tensor | Samples):
        yield path, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _leaves(value, f"{path}[{key!r}]")
    elif isinstance(batch, list | tuple):
        if batch and all(isinstance(value, _PLAIN) for value in batch):
            raise UserError(
                f"{path} has {len(batch)} plain values, not one a sample, and cannot be cut; "
                "loss_fn can hold what is the same for all samples"
            )
        for index, value in enumerate(batch):
            yield from _leaves(value, f"{path}[{index}]")
    elif not isinstance(batch, _PLAIN):
        raise UserError(f"{path} is a {type(batch).__name__}; {_WORKS}")
