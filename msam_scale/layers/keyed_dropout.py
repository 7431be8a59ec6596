"""Dropout and stochastic depth whose masks depend on the sample, never on the layout.

A mask is a function of (seed, step, layer, call, position in the mini-batch): both passes of a
micro-batch draw the same one, and so do runs with other chunks, ranks or shardings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod

import torch
from torch import nn

from msam_scale.layers.pass_context import PassContext


class KeyedMask(nn.Module):
    """What the keyed layers share: the key of one call, and the mask that follows from it."""

    pass_context: PassContext
    layer: int

    def drops(self, probability: float) -> bool:
        """Whether the layer does anything that a mask decides; without, it compiles as torch's."""
        return self.training and 0.0 < probability < 1.0

    def applies_to(self, inputs: torch.Tensor) -> bool:
        """Whether this call is in one of the engine's passes, on the chunk's samples.

        A tensor that is not made of the chunk's samples (its first dimension is no multiple of
        their number) cannot be keyed by sample. Such a call keeps torch's own mask, from the
        generators that the engine seeds by (seed, step, micro-batch, slice).
        """
        context = self.pass_context
        if not context.active:
            return False
        return inputs.dim() > 0 and inputs.shape[0] % context.num_samples == 0

    def masked(
        self,
        inputs: torch.Tensor,
        *,
        otherwise: Callable[[torch.Tensor], torch.Tensor],
        probability: float,
        num_mask_dims: int,
        scale: bool = True,
    ) -> torch.Tensor:
        """Drops with this probability; the mask spans the first `num_mask_dims` dimensions.

        Calls that no mask of ours applies to are `otherwise`'s.
        """
        if not self.applies_to(inputs):
            return otherwise(inputs)
        shape = inputs.shape[:num_mask_dims] + (1,) * (inputs.dim() - num_mask_dims)
        numbers_per_sample = prod(shape) // self.pass_context.num_samples
        call = self.pass_context.call_of(self.layer)
        uniform = self.pass_context.sample_uniform(self.layer, call, numbers_per_sample)
        # A boolean mask is what autograd keeps: one byte an element.
        kept = inputs * (uniform >= probability).view(shape)
        return kept * (1.0 / (1.0 - probability)) if scale else kept


def keep_out_of_compiled_code() -> None:
    """Has torch's compiler leave masks alone, where the process has loaded it. Before each step.

    A mask depends on what pass is running, which code would have to be compiled anew for. The
    decorator that says so imports the compiler, which takes as long as torch itself.
    """
    if "torch._dynamo" in sys.modules and not hasattr(KeyedMask.masked, "__wrapped__"):
        KeyedMask.masked = torch.compiler.disable(KeyedMask.masked)  # type: ignore[method-assign]


class KeyedDropout(KeyedMask, nn.Dropout):
    """`torch.nn.Dropout` with a mask for each element of each sample."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Drops elements; any shape whose first dimension runs over the samples."""
        if not self.drops(self.p):
            return super().forward(inputs)
        return self.masked(
            inputs, otherwise=super().forward, probability=self.p, num_mask_dims=inputs.dim()
        )


class KeyedDropout1d(KeyedMask, nn.Dropout1d):
    """`torch.nn.Dropout1d` with a mask for each channel of each sample."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Drops channels of (samples, channels, length), rows of (samples, length) as torch."""
        if not self.drops(self.p):
            return super().forward(inputs)
        return self.masked(
            inputs, otherwise=super().forward, probability=self.p, num_mask_dims=inputs.dim() - 1
        )


class KeyedDropout2d(KeyedMask, nn.Dropout2d):
    """`torch.nn.Dropout2d` with a mask for each channel of each sample."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Drops channels of (samples, channels, height, width)."""
        if not self.drops(self.p):
            return super().forward(inputs)
        return self.masked(inputs, otherwise=super().forward, probability=self.p, num_mask_dims=2)


class KeyedDropout3d(KeyedMask, nn.Dropout3d):
    """`torch.nn.Dropout3d` with a mask for each channel of each sample."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Drops channels of (samples, channels, depth, height, width); one dimension less: rows."""
        if not self.drops(self.p):
            return super().forward(inputs)
        return self.masked(
            inputs, otherwise=super().forward, probability=self.p, num_mask_dims=inputs.dim() - 3
        )


KEYED_CLASSES: dict[type[nn.Module], type[KeyedMask]] = {
    nn.Dropout: KeyedDropout,
    nn.Dropout1d: KeyedDropout1d,
    nn.Dropout2d: KeyedDropout2d,
    nn.Dropout3d: KeyedDropout3d,
}
