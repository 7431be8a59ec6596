"""How much the loss rises within ρ of the weights, along the gradient: what SAM and mSAM lower."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from math import isfinite, sqrt
from typing import Protocol

import torch

from msam_scale.flatness.lanczos import NotFiniteError


class LossSurface(Protocol):
    """A loss as a function of the weights; collective where ranks share samples or weights."""

    def loss(self) -> float:
        """The mean loss over the samples, the same on every rank."""
        ...

    def gradient(self) -> torch.Tensor:
        """Its gradient, a new one-dimensional tensor."""
        ...

    def displaced(self, displacement: torch.Tensor) -> AbstractContextManager[None]:
        """Inside, the weights are w + displacement; outside w again, bit for bit."""
        ...

    def inner(self, rows: Sequence[torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
        """⟨row, vector⟩ for each row: float64 on the CPU, the same on every rank."""
        ...


def rho_sharpness(surface: LossSurface, *, rho: float) -> float:
    """L(w + ρ g/‖g‖₂) - L(w) with g = ∇L(w): the rise of the loss along one ascent step of SAM.

    It is a lower bound of the largest rise within distance ρ (Foret et al., equation 2), and 0
    where the gradient is.

    Args:
        surface: the loss.
        rho: the distance ρ in the space of all weights.

    Raises:
        ValueError: ρ is not positive.
        NotFiniteError: loss or gradient are not finite.
    """
    if not 0 < rho < float("inf"):
        raise ValueError(f"rho: {rho} is not a positive number")
    gradient = surface.gradient()
    norm = sqrt(surface.inner([gradient], gradient)[0])
    if norm == 0:
        return 0.0
    before = surface.loss()
    with surface.displaced(gradient.mul_(rho / norm)):
        rise = surface.loss() - before
    if not (isfinite(norm) and isfinite(rise)):
        raise NotFiniteError("loss or gradient are not finite")
    return rise


def m_sharpness(micro_batches: Iterable[LossSurface], *, rho: float) -> float:
    """The mean over micro-batches of their own ρ-sharpness, each with its own ascent direction.

    That is the difference between the loss that mSAM minimises (equation 5 of the paper) and the
    plain one. Smaller micro-batches have larger values, so it belongs to their size.

    Args:
        micro_batches: the losses of micro-batches of equal size.
        rho: the distance ρ.

    Raises:
        ValueError: there is no micro-batch, or as `rho_sharpness`.
    """
    rises = [rho_sharpness(surface, rho=rho) for surface in micro_batches]
    if not rises:
        raise ValueError("m-sharpness needs at least one micro-batch")
    return sum(rises) / len(rises)
