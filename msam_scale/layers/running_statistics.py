"""The running statistics of all ghost batch norms of a model, updated once a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from msam_scale.layers.ghost_batch_norm import GhostNormalization


class RunningStatistics:
    """Sums over ghost batches in one flat float64 vector that the step reduces over all ranks.

    The vector holds the means of all layers, then their variances, then one count of ghost batches
    a layer; each layer adds to its own views of it.
    """

    def __init__(self, layers: Sequence[GhostNormalization]) -> None:
        self._layers = [layer for layer in layers if layer.running_mean is not None]
        self._num_features = [layer.num_features for layer in self._layers]
        self.size = 2 * sum(self._num_features) + len(self._layers)

    def bind(self, sums: torch.Tensor) -> None:
        """Gives each layer its views of this float64 vector of `size` elements."""
        self._sums = sums
        means, variances, counts = self._parts()
        for layer, mean, variance, count in zip(
            self._layers,
            means.split(self._num_features),
            variances.split(self._num_features),
            counts.unbind(),
            strict=True,
        ):
            layer.sums = (mean, variance, count)
        device = sums.device
        self._layer_of_feature = torch.repeat_interleave(
            torch.arange(len(self._layers), device=device),
            torch.tensor(self._num_features, dtype=torch.int64, device=device),
        )
        dtypes = {buffer.dtype for buffer in self._buffers("running_var")}
        self._largest = min((torch.finfo(dtype).max for dtype in dtypes), default=0.0)
        # torch's momentum None is a cumulative average: NaN marks it here.
        self._momentum = torch.tensor(
            [float("nan") if layer.momentum is None else layer.momentum for layer in self._layers],
            dtype=torch.float64,
            device=device,
        )

    def follow(self) -> torch.Tensor:
        """Works out the running statistics after the step, by the mean over all ghost batches.

        Returns:
            Whether all are finite in the buffers' types, a 0-dimensional bool on the device.
        """
        self._moved: list[tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]] = []
        if not self._layers:
            return torch.ones((), dtype=torch.bool, device=self._sums.device)
        means, variances, counts = self._parts()
        num_updates = torch.stack(self._buffers("num_batches_tracked")).double()
        momentum = torch.where(self._momentum.isnan(), 1.0 / (num_updates + 1), self._momentum)
        largest = []
        for running, sums in (
            (self._buffers("running_mean"), means),
            (self._buffers("running_var"), variances),
        ):
            old = torch.cat([buffer.double() for buffer in running])
            new = torch.lerp(
                old, sums / counts[self._layer_of_feature], momentum[self._layer_of_feature]
            )
            new = torch.where((counts > 0)[self._layer_of_feature], new, old)
            self._moved.append((running, old, new))
            largest.append(new.abs().amax())
        return torch.stack(largest).amax() <= self._largest  # false for what is not a number

    def update(self, applies: torch.Tensor) -> None:
        """Moves the running statistics to where `follow` has found them.

        Args:
            applies: 0-dimensional bool on the device; false leaves every buffer bit-identical.
        """
        if not self._layers:
            return
        for running, old, new in self._moved:
            moved = torch.where(applies, new, old)
            torch._foreach_copy_(running, moved.split(self._num_features))
        self._moved.clear()
        moves = applies & (self._parts()[2] > 0)
        tracked = self._buffers("num_batches_tracked")
        torch._foreach_add_(tracked, [move.to(torch.int64) for move in moves])

    def _buffers(self, name: str) -> list[torch.Tensor]:
        return [layer.get_buffer(name) for layer in self._layers]

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_features = sum(self._num_features)
        means, variances, counts = self._sums.split([num_features, num_features, len(self._layers)])
        return means, variances, counts
