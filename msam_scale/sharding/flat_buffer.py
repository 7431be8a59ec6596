"""One contiguous buffer with a view for each parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Views start at multiples of this many bytes: matrix kernels are slow, or refuse, otherwise.
_ALIGNMENT = 64


class FlatBuffer:
    """A gradient-sized buffer: `flat` for whole-buffer arithmetic, `views` for autograd.

    Attributes:
        flat: one-dimensional, zero-initialised; the gaps between views stay zero.
        views: one tensor for each of `tensors`, with its shape, and its strides where it is dense.
        starts: for each view the index in `flat` of its first element.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        first = tensors[0]
        unit = _ALIGNMENT // first.element_size()
        self.starts: list[int] = []
        size = 0
        for tensor in tensors:
            self.starts.append(size)
            size += -(-tensor.numel() // unit) * unit
        self.flat = torch.zeros(size, dtype=first.dtype, device=first.device)
        self.views = [
            _view_like(self.flat, start, tensor)
            for start, tensor in zip(self.starts, tensors, strict=True)
        ]


def _view_like(flat: torch.Tensor, start: int, tensor: torch.Tensor) -> torch.Tensor:
    # Dense tensors keep their strides (channels_last weights), others become contiguous.
    strides = torch.empty_like(tensor, device="meta").stride()
    return flat.as_strided(tensor.shape, strides, start)
