"""SAM's ascent: ε = ρ · g / ‖g‖₂ (equations (4) and (6))."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from msam_scale.sharding.flat_buffer import FlatBuffer


def sam(
    gradient: FlatBuffer,
    weights: Sequence[torch.Tensor],
    *,
    rho: float,
    square_sum: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Turns g into ε in place, without a small constant in the denominator.

    A zero gradient gives ε = 0. Where the norm is not finite ε is unusable and the caller, who sees
    the norm, skips the step.
    """
    norm = square_sum(gradient.flat).sqrt()
    scale = torch.where(norm > 0, rho / norm, 0.0)
    gradient.flat.mul_(scale.to(gradient.flat.device))
    return norm
