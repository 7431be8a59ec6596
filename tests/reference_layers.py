"""The reference's own ghost batch normalization, and dropout from masks for all B samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.func import _random as torch_random


class Place:
    """Where in the run the reference is: read by its layers.

    Args:
        seed: of the masks.
        norm_samples: samples normalised together; None: all samples of a forward.
    """

    def __init__(self, *, seed: int, norm_samples: int | None) -> None:
        self.seed = seed
        self.norm_samples = norm_samples
        self.step = 0
        self.num_samples = 0
        self.positions = torch.empty(0, dtype=torch.int64)
        self.records_statistics = False
        self.norms: list[ReferenceBatchNorm] = []
        self.masks: list[ReferenceMask] = []

    def begin_step(self, step: int, *, num_samples: int) -> None:
        """Goes to a step with a mini-batch of so many samples."""
        self.step, self.num_samples = step, num_samples

    def begin_forward(self, positions: torch.Tensor, *, records_statistics: bool) -> None:
        """Goes to a forward of the samples at these positions."""
        self.positions, self.records_statistics = positions, records_statistics
        for mask in self.masks:
            mask.num_calls = 0

    def end_step(self) -> None:
        """Moves the running statistics, once."""
        for norm in self.norms:
            norm.move()


class ReferenceBatchNorm(nn.Module):
    """Batch norm over runs of samples; running statistics move by the mean over all runs."""

    def __init__(self, original: nn.BatchNorm2d, place: Place) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias
        for name, buffer in original.named_buffers():
            self.register_buffer(name, buffer.clone())
        self.eps, self.momentum, self.place = original.eps, original.momentum, place
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        place.norms.append(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises (samples, channels, height, width)."""
        parts = images.split(self.place.norm_samples or len(images))
        return torch.cat([self._normalise(part) for part in parts])

    def move(self) -> None:
        """Moves the running statistics by what was seen since the last time."""
        momentum = self.momentum
        tracked = self.get_buffer("num_batches_tracked").add_(1)
        if momentum is None:
            momentum = 1.0 / float(tracked)
        means, variances = zip(*self.seen, strict=True)
        self._move("running_mean", means, momentum)
        self._move("running_var", variances, momentum)
        self.seen.clear()

    def _move(self, name: str, values: Sequence[torch.Tensor], momentum: float) -> None:
        mean = torch.stack(tuple(values)).mean(0)
        buffer = self.get_buffer(name)
        buffer.copy_((1 - momentum) * buffer + momentum * mean)

    def _normalise(self, part: torch.Tensor) -> torch.Tensor:
        mean = part.mean((0, 2, 3), keepdim=True)
        centred = part - mean
        count = part.numel() // part.shape[1]
        variance = centred.square().sum((0, 2, 3), keepdim=True) / count
        if self.place.records_statistics:
            unbiased = variance.detach().flatten() * count / (count - 1)
            self.seen.append((mean.detach().flatten(), unbiased))
        shape = (1, -1, 1, 1)
        return centred / (variance + self.eps).sqrt() * self.weight.view(shape) + self.bias.view(
            shape
        )


class ReferenceMask(nn.Module):
    """Dropout from a mask drawn for all B samples at once, of which a forward takes its rows."""

    def __init__(
        self, probability: float, layer: int, place: Place, *, whole_samples: bool
    ) -> None:
        super().__init__()
        # timm reads `p` of the dropout that its fused attention does itself.
        self.p, self.layer, self.place = probability, layer, place
        self.whole_samples = whole_samples
        self.num_calls = 0
        place.masks.append(self)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Drops single values, or `whole_samples`, of (samples, …)."""
        call, self.num_calls = self.num_calls, self.num_calls + 1
        if self.p == 0.0:
            return inputs
        shape = (1,) * (inputs.dim() - 1) if self.whole_samples else inputs.shape[1:]
        mask = draw_mask(
            self.p,
            (self.place.num_samples, *shape),
            seed=self.place.seed,
            step=self.place.step,
            layer=self.layer,
            call=call,
        )
        return inputs * mask[self.place.positions].to(inputs.dtype) / (1 - self.p)


@cache
def draw_mask(
    probability: float, shape: tuple[int, ...], *, seed: int, step: int, layer: int, call: int
) -> torch.Tensor:
    """The kept entries of a whole mini-batch: bool of `shape`, the first dimension B.

    The key of a sample is (first word of fold_in(fold_in(fold_in(key(seed), step), layer), call),
    position · 2³²); an entry is kept where its uniform number is at least the probability.
    """
    key = torch_random.key(seed)
    for number in (step, layer, call):
        key = torch_random.fold_in(key, number)
    rows = []
    for position in range(shape[0]):
        words = torch.stack((key.view(torch.int64)[0], torch.tensor(position * 2**32)))
        rows.append(torch_random.uniform(words.view(torch.uint64), shape[1:]))
    return torch.stack(rows) >= probability


def replace_layers(model: nn.Module, place: Place) -> None:
    """Puts the reference's layers in the place of torch's, in the order of `named_modules`."""
    num_masks = 0
    for name, module in list(model.named_modules()):
        new: nn.Module
        if isinstance(module, nn.BatchNorm2d):
            new = ReferenceBatchNorm(module, place)
        elif isinstance(module, nn.Dropout | DropPath):
            whole = isinstance(module, DropPath)
            probability = module.drop_prob if isinstance(module, DropPath) else module.p
            new = ReferenceMask(probability, num_masks, place, whole_samples=whole)
            num_masks += 1
        else:
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, new)
