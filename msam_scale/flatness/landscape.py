"""The loss around a run's weights, along random directions with filter normalization.

A network of ReLUs is the same function after one layer is scaled up and the next one down, but a
step of a given length then is a small one for it. Filter normalization (Li, Xu, Taylor, Studer and
Goldstein, 2018, Visualizing the loss landscape of neural nets, section 4) makes steps relative:
each filter of a random direction gets the length of the filter it moves, so landscapes of different
runs can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.flatness.opened_run import OpenedRun

# Samples of one batch of the loss, where the run has no batch.chunk.
_BATCH_SIZE = 256


@dataclass(frozen=True)
class LandscapeRequest:
    """Where the loss is evaluated.

    Attributes:
        dimensions: 1 or 2 directions.
        num_points: along each direction, evenly from -radius to radius; odd, so that the weights
            themselves are one.
        radius: in lengths of the filters: at 1 the displacement of each is as long as it is.
        num_samples: training samples that count, a random part of them all; None: all.
        seed: direction d is drawn with seed + d: the same numbers for equal models.
    """

    dimensions: int = 1
    num_points: int = 21
    radius: float = 1.0
    num_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dimensions not in (1, 2):
            raise UserError(f"--dimensions: {self.dimensions} is neither 1 nor 2")
        if self.num_points < 3 or self.num_points % 2 == 0:
            raise UserError(
                f"--points: {self.num_points} is not an odd number of at least 3, with which the "
                f"run's own weights are in the middle; {max(3, self.num_points + 1)} works"
            )
        if not 0 < self.radius < float("inf"):
            raise UserError(f"--radius: {self.radius} is not a positive number")

    @property
    def coordinates(self) -> list[float]:
        """The `num_points` multiples of a direction."""
        half = self.num_points // 2
        return [self.radius * number / half for number in range(-half, half + 1)]


@dataclass(frozen=True)
class Landscape:
    """The training loss around the weights of one run.

    The loss is that of `RunFlatness`: the run's own, without augmentation and dropout; batch
    normalization uses the running statistics of the weights in the middle everywhere.

    Attributes:
        run: its folder, as it was given.
        step: of the checkpoint.
        num_samples: that counted.
        losses: (points,), or (points, points) with the first direction first.
    """

    run: str
    step: int
    num_samples: int
    losses: torch.Tensor

    @property
    def centre(self) -> float:
        """The loss at the run's weights."""
        return float(self.losses[tuple(size // 2 for size in self.losses.shape)])


def filter_normalized_direction(model: nn.Module, *, seed: int) -> torch.Tensor:
    """A random direction in the space of all trained parameters, each filter scaled to the model's.

    A filter is what leads to one output of a convolution or a linear layer: one index of the
    parameter's first dimension. Parameters with fewer than two dimensions, which are biases and
    those of normalizations, do not move, as in Li et al.

    Args:
        model: gives shapes and lengths.
        seed: of independent normal numbers, drawn on the CPU in the order of the parameters.

    Returns:
        Shape (trained parameters,), in the order of `model.parameters()`, flattened.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        weights = parameter.detach()
        if weights.dim() < 2:
            parts.append(torch.zeros_like(weights).flatten())
            continue
        drawn = torch.randn(weights.shape, generator=generator).to(weights)
        lengths = torch.linalg.vector_norm(weights.flatten(1), dim=1)
        drawn = drawn.flatten(1)
        drawn *= (lengths / torch.linalg.vector_norm(drawn, dim=1))[:, None]
        parts.append(drawn.flatten())
    return torch.cat(parts)


def measure_landscape(
    opened: OpenedRun,
    request: LandscapeRequest,
    *,
    report: Callable[[], None] = lambda: None,
) -> Landscape:
    """Evaluates the loss on the grid around the weights; the model is left as it was.

    Args:
        opened: the run.
        request: the grid.
        report: called after each point.

    Raises:
        UserError: more samples than there are, or the loss at the run's weights is not finite.
    """
    samples = opened.samples(num_samples=request.num_samples, batch_size=_BATCH_SIZE)
    surface = opened.curvature(samples, at_once=samples.batch_size)
    if not isfinite(loss := surface.loss()):
        raise UserError(f"{opened.checkpoint}: its training loss is {loss}; there is no landscape")
    directions = [
        filter_normalized_direction(opened.model, seed=request.seed + number)
        for number in range(request.dimensions)
    ]
    shape = (request.num_points,) * request.dimensions
    grid = torch.cartesian_prod(
        *[torch.tensor(request.coordinates, dtype=torch.float64)] * request.dimensions
    ).view(-1, request.dimensions)
    losses = []
    for place in grid.tolist():
        displacement = torch.zeros_like(directions[0])
        for factor, direction in zip(place, directions, strict=True):
            displacement.add_(direction, alpha=factor)
        with surface.displaced(displacement):
            losses.append(surface.loss())
        report()
    return Landscape(
        run=str(opened.folder),
        step=opened.step,
        num_samples=samples.num_samples,
        losses=torch.tensor(losses, dtype=torch.float64).view(shape),
    )
