"""How much of a perturbation survives in the number format that computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def perturbation_fidelity(
    weights: Sequence[torch.Tensor],
    perturbation: Sequence[torch.Tensor],
    *,
    compute: torch.dtype,
    group: dist.ProcessGroup | None,
    device: torch.device,
) -> torch.Tensor:
    """⟨c(w + ε) - c(w), ε⟩ / ‖ε‖², where c rounds to the type that computes.

    With float32 weights most entries of a small ε vanish in bfloat16 while some move by a whole
    unit: the low bits of w act as a dither, and the projection stays near 1. Without them it falls.

    Args:
        weights: this rank's parts of w.
        perturbation: those of ε, aligned with them.
        compute: the type that matrix products read weights in.
        group: the ranks that hold the other parts.
        device: where the rank computes; offloaded parts lie elsewhere.

    Returns:
        A float64 scalar on the device; 1 where ε is zero, of which nothing can be lost.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for weight, epsilon in zip(weights, perturbation, strict=True):
        moved = (weight + epsilon).to(compute).double() - weight.to(compute).double()
        wide = epsilon.double()
        sums[0] += (moved * wide).sum().to(device)
        sums[1] += wide.square().sum().to(device)
    if group is not None:
        dist.all_reduce(sums, group=group)
    return torch.where(sums[1] == 0, 1.0, sums[0] / sums[1])
