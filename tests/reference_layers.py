"""The reference's own ghost batch normalization, and dropout from masks for all B samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from timm.layers.drop import DropPath
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.func import _random as torch_random
from torch.nn.modules.batchnorm import _BatchNorm


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


class ReferenceBatchNorm:
    """Batch norm over runs of samples; running statistics move by the mean over all runs."""

    def __init__(self, module: _BatchNorm, place: Place) -> None:
        self.module, self.place = module, place
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        place.norms.append(self)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalises (samples, channels, …)."""
        rows = len(inputs) // len(self.place.positions)
        num_samples = self.place.norm_samples or len(self.place.positions)
        parts = inputs.split(num_samples * rows)
        normal = torch.cat([self._normalise(part) for part in parts])
        if isinstance(self.module, BatchNormAct2d):
            return self.module.act(self.module.drop(normal))  # type: ignore[no-any-return]
        return normal

    def move(self) -> None:
        """Moves the running statistics by what was seen since the last time."""
        if not self.seen:
            return
        momentum = self.module.momentum
        tracked = self.module.get_buffer("num_batches_tracked").add_(1)
        if momentum is None:
            momentum = 1.0 / float(tracked)
        means, variances = zip(*self.seen, strict=True)
        self._move("running_mean", means, momentum)
        self._move("running_var", variances, momentum)
        self.seen.clear()

    def _move(self, name: str, values: Sequence[torch.Tensor], momentum: float) -> None:
        mean = torch.stack(tuple(values)).mean(0)
        buffer = self.module.get_buffer(name)
        buffer.copy_((1 - momentum) * buffer + momentum * mean)

    def _normalise(self, part: torch.Tensor) -> torch.Tensor:
        dims = [dim for dim in range(part.dim()) if dim != 1]
        mean = part.mean(dims, keepdim=True)
        centred = part - mean
        count = part.numel() // part.shape[1]
        variance = centred.square().sum(dims, keepdim=True) / count
        if self.place.records_statistics and self.module.running_mean is not None:
            unbiased = variance.detach().flatten() * count / (count - 1)
            self.seen.append((mean.detach().flatten(), unbiased))
        normal = centred / (variance + self.module.eps).sqrt()
        if not self.module.affine:
            return normal
        shape = [-1 if dim == 1 else 1 for dim in range(part.dim())]
        return normal * self.module.weight.view(shape) + self.module.bias.view(shape)


class ReferenceMask:
    """Dropout from a mask drawn for all B samples at once, of which a forward takes its rows.

    Where the rows are not those of the samples, the layer does what it does anyway.
    """

    def __init__(self, module: nn.Module, layer: int, place: Place) -> None:
        self.module, self.layer, self.place = module, layer, place
        self.ordinary = module.forward
        self.num_calls = 0
        place.masks.append(self)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Drops values, channels or samples of (samples, …), as the layer's class does."""
        module = self.module
        probability = module.drop_prob if isinstance(module, DropPath) else module.p
        rows, rest = divmod(len(inputs), len(self.place.positions))
        if not (module.training and 0.0 < probability < 1.0) or rest:
            return self.ordinary(inputs)  # type: ignore[no-any-return]
        call, self.num_calls = self.num_calls, self.num_calls + 1
        num_dims = _MASKED_DIMS[type(module)](inputs.dim())
        mask = draw_mask(
            probability,
            (self.place.num_samples, rows, *inputs.shape[1:num_dims]),
            seed=self.place.seed,
            step=self.place.step,
            layer=self.layer,
            call=call,
        )
        mask = mask[self.place.positions].flatten(0, 1).to(inputs.dtype)
        scale = (
            1.0 if isinstance(module, DropPath) and not module.scale_by_keep else 1 - probability
        )
        return inputs * mask.view(*mask.shape, *[1] * (inputs.dim() - num_dims)) / scale


# Over how many of an input's dimensions a mask goes.
_MASKED_DIMS: dict[type[nn.Module], Callable[[int], int]] = {
    nn.Dropout: lambda dims: dims,
    nn.Dropout1d: lambda dims: dims - 1,
    nn.Dropout2d: lambda dims: 2,
    nn.Dropout3d: lambda dims: dims - 3,
    DropPath: lambda dims: 1,
}


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
    """Gives torch's and timm's layers the reference's forwards, in the order of `named_modules`."""
    num_masks = 0
    for _, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            module.forward = ReferenceBatchNorm(module, place)
        elif type(module) in _MASKED_DIMS:
            module.forward = ReferenceMask(module, num_masks, place)
            num_masks += 1


def seed_of_forward(place: Place, first_position: int) -> int:
    """What torch's, numpy's and Python's generators are seeded by in a forward.

    The first word of fold_in(fold_in(key(seed), step), position of the first sample).
    """
    key = torch_random.key(place.seed)
    for number in (place.step, first_position):
        key = torch_random.fold_in(key, number)
    return int(key.view(torch.int64)[0])
