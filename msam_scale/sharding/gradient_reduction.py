"""Sums gradients over a process group, bucket by bucket, while the backward still runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist

from msam_scale.sharding.flat_buffer import FlatBuffer

# As DistributedDataParallel's default: large enough to use the wire, small enough to overlap.
BUCKET_BYTES = 25 * 2**20


class GradientReduction:
    """Launches one all-reduce a bucket as soon as the last gradient of the bucket is there.

    Buckets are cut from the end of the buffer, since the last layers' gradients come first. They
    are launched in one fixed order on every rank, so that ranks on which different parameters go
    unused still meet in the same collectives; what no hook has launched, `finish` does.

    Args:
        parameters: those whose gradients are summed.
        layout: a buffer laid out as those that `start` is given.
        bucket_bytes: bytes of one all-reduce; the last parameter of a bucket may exceed it.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        *,
        layout: FlatBuffer,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._bucket_of, self._ranges = _cut(layout, bucket_bytes)
        self._buffer: FlatBuffer | None = None
        for index, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._on_gradient, index))

    def start(self, buffer: FlatBuffer, group: dist.ProcessGroup) -> None:
        """Watches the coming backward, whose gradients land in `buffer`."""
        self._buffer, self._group = buffer, group
        self._works: list[dist.Work] = []
        self._missing = [0] * len(self._ranges)
        for bucket in self._bucket_of:
            self._missing[bucket] += 1
        self._is_final = [False] * len(self._bucket_of)
        self._written: list[list[torch.cuda.Event]] = [[] for _ in self._ranges]

    def finish(self) -> None:
        """Launches what is left and makes the current stream wait for all sums."""
        assert self._buffer is not None, "finish() without start()"
        while len(self._works) < len(self._ranges):
            self._launch_next()
        for work in self._works:
            work.wait()
        self._buffer = None

    def cancel(self) -> None:
        """Stops watching after an error in the backward; sums on their way still arrive.

        Left alone they would arrive in the middle of a later step.
        """
        if self._buffer is not None:
            for work in self._works:
                work.wait()
        self._buffer = None

    def _on_gradient(self, index: int, _parameter: torch.Tensor) -> None:
        if self._buffer is None:
            return
        if self._is_final[index]:
            raise RuntimeError(
                "a parameter received two gradients in one backward, as re-entrant activation "
                "checkpointing does; use checkpointing with use_reentrant=False"
            )
        self._is_final[index] = True
        bucket = self._bucket_of[index]
        self._missing[bucket] -= 1
        if self._buffer.flat.is_cuda:
            self._written[bucket].append(torch.cuda.current_stream().record_event())
        while len(self._works) < len(self._ranges) and not self._missing[len(self._works)]:
            self._launch_next()

    def _launch_next(self) -> None:
        assert self._buffer is not None
        for event in self._written[len(self._works)]:
            # Gradients of one bucket may come from several streams, FSDP2's own among them.
            torch.cuda.current_stream().wait_event(event)
        start, end = self._ranges[len(self._works)]
        work = dist.all_reduce(self._buffer.flat[start:end], group=self._group, async_op=True)
        assert work is not None
        self._works.append(work)


def _cut(buffer: FlatBuffer, bucket_bytes: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The bucket of each view, and each bucket's range in `flat`, last parameters first."""
    bucket_of = [0] * len(buffer.views)
    ranges: list[tuple[int, int]] = []
    end = buffer.flat.numel()
    for index in reversed(range(len(buffer.views))):
        start = buffer.starts[index]
        bucket_of[index] = len(ranges)
        if (end - start) * buffer.flat.element_size() >= bucket_bytes or index == 0:
            ranges.append((start, end))
            end = start
    return bucket_of, ranges
