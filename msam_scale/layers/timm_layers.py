"""timm's layers that obey the engine's passes; apart, as timm takes a second to import."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from msam_scale.layers.ghost_batch_norm import GhostNormalization
from msam_scale.layers.keyed_dropout import KeyedMask


class KeyedDropPath(KeyedMask, DropPath):
    """timm's `DropPath` (stochastic depth) with one mask value for each sample."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Drops whole samples of a residual branch."""
        if not self.drops(self.drop_prob):
            return super().forward(inputs)
        return self.masked(
            inputs,
            otherwise=super().forward,
            probability=self.drop_prob,
            num_mask_dims=1,
            scale=self.scale_by_keep,
        )


class GhostBatchNormAct2d(GhostNormalization, BatchNormAct2d):
    """timm's `BatchNormAct2d` (batch norm, dropout layer, activation) over ghost batches."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalises (samples, channels, height, width) and applies the activation."""
        if not self.applies():
            return super().forward(inputs)
        return self.act(self.drop(self.normalised(inputs)))


TIMM_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    DropPath: KeyedDropPath,
    BatchNormAct2d: GhostBatchNormAct2d,
}
