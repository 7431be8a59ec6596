"""The ascent of the paper's theory: ε = ρ · g, without the norm (section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from msam_scale.sharding.flat_buffer import FlatBuffer


def unnormalized(
    gradient: FlatBuffer,
    weights: Sequence[torch.Tensor],
    *,
    rho: float,
    square_sum: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Turns g into ε in place; ρ is a factor, and the perturbation vanishes with the gradient."""
    norm = square_sum(gradient.flat).sqrt()
    gradient.flat.mul_(rho)
    return norm
