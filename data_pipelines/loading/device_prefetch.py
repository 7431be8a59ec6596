"""Batches copied to a CUDA device while the one before is worked on."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from data_pipelines.loading.batchers import Batch


class DevicePrefetcher:
    """Yields batches on a device, one copied ahead on a stream of its own.

    The scheme is that of timm's `PrefetchLoader`: while the model works on a batch, the next one is
    copied from pinned memory. A batch on the host is kept until its copy is done, and the memory of
    one on the device until the stream that uses it is done with it (`Tensor.record_stream`). It
    asks for one batch more than it has yielded, so a loader's `state_dict` must be told how many
    steps are done. On other devices batches are moved when they are asked for.
    """

    def __init__(self, batches: Iterable[Batch], *, device: torch.device) -> None:
        """Copies nothing yet.

        Args:
            batches: A loader.
            device: Where the batches are needed.
        """
        self._batches = batches
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches in order."""
        if self._device.type == "cuda":
            return self._prefetched()
        return (_mapped(self._moved, batch) for batch in self._batches)

    def _prefetched(self) -> Iterator[Batch]:
        copying = torch.cuda.Stream(self._device)
        ready: tuple[Batch, torch.cuda.Event] | None = None
        for batch in self._batches:
            with torch.cuda.stream(copying):
                on_device = _mapped(self._moved, batch)
                copied = torch.cuda.Event()
                copied.record(copying)
            if ready is not None:
                yield self._handed_over(*ready)
                # The batch before was used meanwhile, so this waits for a copy only where copying
                # is slower than the model. Then the host's memory may be filled again.
            copied.synchronize()
            ready = on_device, copied
        if ready is not None:
            yield self._handed_over(*ready)

    def _handed_over(self, batch: Batch, copied: torch.cuda.Event) -> Batch:
        using = torch.cuda.current_stream(self._device)
        using.wait_event(copied)

        def handed_over(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(using)
            return tensor

        return _mapped(handed_over, batch)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=tensor.is_pinned())


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> Any:
    if isinstance(batch, dict):
        return {name: function(tensor) for name, tensor in batch.items()}
    if hasattr(batch, "_fields"):  # a named tuple, which takes its fields one by one
        return type(batch)(*map(function, batch))
    return tuple(map(function, batch))
