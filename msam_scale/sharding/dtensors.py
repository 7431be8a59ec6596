"""Asks for DTensors without importing them, which takes most of a second.

A process that has not imported the module holds no such tensor.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_dtensor(tensor: torch.Tensor) -> TypeIs[DTensor]:
    """Whether it is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_in_rows(tensor: DTensor) -> bool:
    """Whether each rank holds a run of rows: `Shard(0)` on a one-dimensional mesh."""
    from torch.distributed.tensor import Shard

    return tuple(tensor.placements) == (Shard(0),)
