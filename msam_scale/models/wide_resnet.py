"""Wide residual networks for small images (Zagoruyko and Komodakis, 2016): WRN-depth-width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from data_pipelines.errors import UserError


class WideBasicBlock(nn.Module):
    """Two 3x3 convolutions in pre-activation order: BN, ReLU, conv, BN, ReLU, (dropout,) conv."""

    def __init__(self, num_inputs: int, *, num_outputs: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(num_inputs)
        self.conv1 = nn.Conv2d(
            num_inputs, num_outputs, kernel_size=3, stride=stride, padding=1, bias=False
        )
        self.norm2 = nn.BatchNorm2d(num_outputs)
        self.dropout = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, kernel_size=3, padding=1, bias=False)
        # The projection sees the activated input, as in the authors' code.
        self.shortcut = (
            nn.Conv2d(num_inputs, num_outputs, kernel_size=1, stride=stride, bias=False)
            if stride != 1 or num_inputs != num_outputs
            else None
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(samples, num_inputs, H, W) to (samples, num_outputs, H / stride, W / stride)."""
        activated = F.relu(self.norm1(inputs))
        residual = inputs if self.shortcut is None else self.shortcut(activated)
        hidden = self.conv1(activated)
        hidden = self.conv2(self.dropout(F.relu(self.norm2(hidden))))
        return residual + hidden  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of (depth - 4) / 6 blocks, 16, 32 and 64 times `width` wide.

    Args:
        depth: 10, 16, 22, 28, 40, …: 6n + 4.
        width: widening factor k.
        num_classes: outputs.
        num_channels: channels of the input image.
        drop_rate: dropout between the two convolutions of a block.

    Raises:
        UserError: the depth is not 6n + 4, or the width is 0.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        num_classes: int = 10,
        num_channels: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        num_blocks, rest = divmod(depth - 4, 6)
        if rest or num_blocks < 1 or width < 1:
            raise UserError(
                f"model.name: wrn-{depth}-{width} does not exist: the depth must be "
                "10, 16, 22, 28, … (6n + 4) and the width at least 1"
            )
        self.stem = nn.Conv2d(num_channels, 16, kernel_size=3, padding=1, bias=False)
        blocks, num_inputs = [], 16
        for stage, num_outputs in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(
                    WideBasicBlock(
                        num_inputs, num_outputs=num_outputs, stride=stride, drop_rate=drop_rate
                    )
                )
                num_inputs = num_outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(num_inputs)
        self.head = nn.Linear(num_inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(samples, num_channels, H, W) to logits (samples, num_classes)."""
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        return self.head(features.mean(dim=(2, 3)))  # type: ignore[no-any-return]
