"""Saved tensors as a sharding asks for them: whole, or just the elements that lie on its rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class SavedTensors(Mapping[str, torch.Tensor]):
    """Whole tensors by name; a source that reads from files reads no more than is asked for."""

    def shape(self, name: str) -> torch.Size:
        """The shape of a whole tensor."""
        return self[name].shape

    def elements(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements in row-major order, one-dimensional."""
        return self[name].flatten()[start:stop]
