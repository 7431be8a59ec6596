"""The trace of a Hessian, from random sign vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from msam_scale.flatness.lanczos import SymmetricOperator


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of tr H.

    Attributes:
        mean: the estimate.
        standard_error: of the mean, from the spread of the samples.
        num_probes: random vectors that went in.
    """

    mean: float
    standard_error: float
    num_probes: int


def estimate_trace(
    operator: SymmetricOperator, *, num_probes: int = 32, seed: int = 0
) -> TraceEstimate:
    """Hutchinson's estimate: the mean of zᵀHz over vectors z of independent signs.

    It is unbiased, and exact where H is diagonal (Hutchinson, 1990). One Hessian-vector product a
    probe.

    Args:
        operator: the Hessian.
        num_probes: how many vectors, at least 2.
        seed: the probes are drawn with `seed`, `seed` + 1, ….

    Raises:
        ValueError: fewer than 2 probes have no spread.
    """
    if num_probes < 2:
        raise ValueError(f"num_probes: {num_probes} is below 2, which have no spread")
    samples = []
    for number in range(num_probes):
        signs = operator.random_signs(seed + number)
        samples.append(operator.inner([operator.product(signs)], signs)[0])
    found = torch.stack(samples)
    return TraceEstimate(
        mean=float(found.mean()),
        standard_error=float(found.std()) / num_probes**0.5,
        num_probes=num_probes,
    )
