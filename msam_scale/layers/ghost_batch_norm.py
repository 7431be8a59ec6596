"""Ghost batch normalization: statistics over fixed runs of samples, whatever the layout.

Each run of `norm_samples` consecutive samples is normalised by its own mean and variance (Hoffer et
al., 2017). The running statistics move once a step, by the mean over all ghost batches of the
mini-batch, so they do not depend on chunks, ranks or on how many micro-batches a rank works on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data_pipelines.errors import UserError
from msam_scale.layers.pass_context import PassContext


class GhostNormalization(_BatchNorm):
    """What the ghost layers share. `sums` receives (mean, variance, count) of each ghost batch."""

    pass_context: PassContext
    sums: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None

    def applies(self) -> bool:
        """Whether this call is in one of the engine's passes and normalises by the batch."""
        by_batch = self.training or self.running_mean is None
        return self.pass_context.active and by_batch

    def normalised(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalises (samples, channels, …) by the statistics of each ghost batch.

        Raises:
            UserError: the first dimension does not run over the chunk's samples.
        """
        context = self.pass_context
        values_per_sample, rest = divmod(inputs.shape[0], context.num_samples)
        if rest or not values_per_sample:
            raise UserError(
                f"{type(self).__name__} got {inputs.shape[0]} rows for {context.num_samples} "
                "samples: ghost batch normalization needs the samples in the first dimension"
            )
        ghosts = inputs.split(context.norm_samples * values_per_sample)
        # A recomputation in the backward must not count its statistics a second time.
        record = context.records_statistics and not context.in_backward and self.sums is not None
        outputs = [self._normalise_one(ghost, record=record) for ghost in ghosts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _normalise_one(self, ghost: torch.Tensor, *, record: bool) -> torch.Tensor:
        mean = variance = None
        # Where nothing is recorded as well: activation checkpointing insists that a recomputation
        # saves the same number of tensors.
        if self.running_mean is not None and self.running_var is not None:
            mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        # With momentum 1 the "running" statistics become those of this ghost batch.
        output = F.batch_norm(
            ghost, mean, variance, self.weight, self.bias, True, momentum=1.0, eps=self.eps
        )
        if record:
            assert self.sums is not None
            assert mean is not None
            assert variance is not None
            sum_of_means, sum_of_variances, count = self.sums
            sum_of_means += mean
            sum_of_variances += variance
            count += 1
        return output


class GhostBatchNorm1d(GhostNormalization, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over ghost batches."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalises (samples, channels) or (samples, channels, length)."""
        return self.normalised(inputs) if self.applies() else super().forward(inputs)


class GhostBatchNorm2d(GhostNormalization, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over ghost batches."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalises (samples, channels, height, width)."""
        return self.normalised(inputs) if self.applies() else super().forward(inputs)


class GhostBatchNorm3d(GhostNormalization, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` over ghost batches."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalises (samples, channels, depth, height, width)."""
        return self.normalised(inputs) if self.applies() else super().forward(inputs)


GHOST_CLASSES: dict[type[nn.Module], type[GhostNormalization]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}
