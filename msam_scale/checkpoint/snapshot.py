"""The state at one step, taken so that training can go on while it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from msam_scale.checkpoint.progress import Progress
from msam_scale.sharding.pieces import Piece


@dataclass(frozen=True)
class Snapshot:
    """What becomes a checkpoint.

    Attributes:
        directory: where checkpoints are.
        progress: everything but the tensors, the same on all ranks.
        pieces: what this rank writes.
        keep: how many complete checkpoints stay, None for all.
        never_finite: names of tensors that have infinities by design.
        ready: waits until `pieces` can be read.
    """

    directory: Path
    progress: Progress
    pieces: Sequence[Piece]
    keep: int | None
    never_finite: frozenset[str] = frozenset()
    ready: Callable[[], None] = lambda: None


class Staging:
    """Host memory for one snapshot, kept from one to the next.

    On an accelerator it is page-locked, and copies run in the order of the current stream: the next
    step's work queues up behind them, and the host goes on at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def staged(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with copies of its pieces, which later steps do not change.

        The one before must have been written.
        """
        copies = [self._buffer_for(piece) for piece in snapshot.pieces]
        if not copies:
            return snapshot
        values = [piece.values for piece in snapshot.pieces]
        torch._foreach_copy_(copies, values, non_blocking=True)
        pieces = [
            replace(piece, values=copy) for piece, copy in zip(snapshot.pieces, copies, strict=True)
        ]
        device = next((one.device for one in values if one.device.type != "cpu"), None)
        if device is None:
            return replace(snapshot, pieces=pieces)
        copied = torch.Event(device.type)
        copied.record()
        return replace(snapshot, pieces=pieces, ready=copied.synchronize)

    def _buffer_for(self, piece: Piece) -> torch.Tensor:
        values, name = piece.values, f"{piece.name}:{piece.start}"
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != values.shape or buffer.dtype != values.dtype:
            pinned = values.device.type == "cuda"
            buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned)
            self._buffers[name] = buffer
        return buffer
