"""J* and Σ of SGD, SAM and mSAM from per-example Hessians (Lemma 3.4), exactly.

With X_i = H_i − H̄ the linearized update of mSAM, equation (36), is

    J_{3,S} = H̄ + ρ H̄² + X_S + ρ (H̄ X_S + X_S H̄) + ρ Q,    Q = (1/m) Σ_j X_{S_j}²,

so J* is a polynomial of degree 1 in ρ and Σ one of degree 2, whose coefficients are moments of the
X_i up to the fourth. `JacobianMoments` holds these coefficients: SAM is m = 1, SGD is ρ = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from msam_scale.flatness.sampling import BatchSampling


@dataclass(frozen=True)
class JacobianMoments:
    """Mean and variance of J_{3,S}(w*) over mini-batches, as polynomials in ρ.

    Attributes:
        sampling: how mini-batches and micro-batches are drawn.
        mean: the coefficients of J*, lowest power of ρ first: two matrices (p, p), float64.
        variance: the coefficients of Σ: three matrices (p, p), float64.
    """

    sampling: BatchSampling
    mean: tuple[torch.Tensor, torch.Tensor]
    variance: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def jacobian(self, *, rho: float) -> torch.Tensor:
        """J*, (p, p): (17) at ρ = 0, (22) at m = 1, else (23)."""
        return self.mean[0] + rho * self.mean[1]

    def covariance(self, *, rho: float) -> torch.Tensor:
        """Σ, (p, p): (17) at ρ = 0, (25) at m = 1, else (26)."""
        return self.variance[0] + rho * self.variance[1] + rho**2 * self.variance[2]


def jacobian_moments(hessians: torch.Tensor, *, sampling: BatchSampling) -> JacobianMoments:
    """The moments of J_{3,S}(w*), without drawing or enumerating mini-batches.

    Costs about 2 n² p³ multiplications and memory for a few copies of the Hessians.

    Args:
        hessians: H_i(w*), (n, p, p), symmetric; computed in float64 whatever their type.
        sampling: its `num_examples` is n.

    Raises:
        ValueError: the Hessians are not (n, p, p), not finite or not symmetric.
    """
    hessians = checked_hessians(hessians)
    num_examples = hessians.shape[0]
    if sampling.num_examples != num_examples:
        raise ValueError(
            f"sampling is over {sampling.num_examples} examples, hessians are of {num_examples}"
        )
    mean = hessians.mean(0)
    centred = hessians - mean
    # The part of the SAM term that is linear in X_i.
    linear = mean @ centred + centred @ mean
    squares = centred @ centred
    second = squares.mean(0)

    batch_variance = float(sampling.batch_variance)
    micro_batch_variance = float(sampling.micro_batch_variance)
    # Σ_i X_i = 0: every free sum with an index that occurs once vanishes, and these remain.
    third = float(sampling.weight((0, 0, 0), factors=(0, 1, 1)))
    covariance_linear = batch_variance * _twice_symmetric((centred @ linear).mean(0))
    covariance_linear = covariance_linear + third * _twice_symmetric((centred @ squares).sum(0))
    covariance_square = (
        batch_variance * (linear @ linear).mean(0)
        + third * _twice_symmetric((linear @ squares).sum(0))
        + _mean_fourth_power(centred, squares, sampling)
        - (micro_batch_variance * second) @ (micro_batch_variance * second)
    )
    return JacobianMoments(
        sampling=sampling,
        mean=(mean, mean @ mean + micro_batch_variance * second),
        variance=(batch_variance * second, covariance_linear, _symmetric(covariance_square)),
    )


def _mean_fourth_power(
    centred: torch.Tensor, squares: torch.Tensor, sampling: BatchSampling
) -> torch.Tensor:
    """E[Q²] with Q = (1/m) Σ_j X_{S_j}²."""
    total = squares.sum(0)
    sums = {
        (0, 0, 0, 0): (squares @ squares).sum(0),
        (0, 0, 1, 1): total @ total,
        (0, 1, 1, 0): (centred @ total @ centred).sum(0),
        (0, 1, 0, 1): _alternating_sum(centred),
    }
    weighted = [
        float(sampling.weight(partition, factors=(0, 0, 1, 1))) * value
        for partition, value in sums.items()
    ]
    return torch.stack(weighted).sum(0)


def _alternating_sum(centred: torch.Tensor) -> torch.Tensor:
    """Σ_{i,k} X_i X_k X_i X_k, one i at a time so that memory stays at one copy of the X_i."""
    size = centred.shape[-1]
    stacked = centred.reshape(-1, size)
    total = torch.zeros_like(centred[0])
    for one in centred:
        inner = (centred @ one).transpose(0, 1).reshape(size, -1) @ stacked
        total += one @ inner
    return total


def batch_jacobian(hessians: torch.Tensor, *, micro_batches: int, rho: float) -> torch.Tensor:
    """J_{3,S}(w*) of one mini-batch: H_S + ρ/m Σ_j H_{S_j}², equation (36).

    Args:
        hessians: H_i of the mini-batch's samples in order, (B, p, p); S_j is the j-th block of B/m.
        micro_batches: m; 1 gives SAM's J_{2,S}, and rho 0 gives SGD's J_{1,S} = H_S.
        rho: ρ, the radius, in units of weights per gradient (unnormalised ascent, Assumption 3.2).
    """
    hessians = checked_hessians(hessians)
    num_samples, size, _ = hessians.shape
    BatchSampling(num_samples, num_samples, micro_batches)
    means = hessians.reshape(micro_batches, -1, size, size).mean(1)
    return means.mean(0) + rho * (means @ means).mean(0)


def checked_hessians(hessians: torch.Tensor) -> torch.Tensor:
    """The Hessians in float64, exactly symmetric; refuses what is none."""
    if hessians.ndim != 3 or hessians.shape[1] != hessians.shape[2] or not hessians.numel():
        raise ValueError(
            f"hessians have shape {tuple(hessians.shape)}; one symmetric (p, p) matrix per "
            "example is needed, stacked to (n, p, p)"
        )
    double = hessians.detach().to(torch.float64)
    if not bool(torch.isfinite(double).all()):
        raise ValueError("hessians hold values that are not finite")
    asymmetry = float((double - double.mT).abs().max())
    largest = float(double.abs().max())
    if asymmetry > 1e-5 * largest:
        raise ValueError(
            f"hessians are not symmetric: entries differ from the transposed ones by up to "
            f"{asymmetry:.2g}, at a largest entry of {largest:.2g}"
        )
    return _symmetric(double)


def _symmetric(matrices: torch.Tensor) -> torch.Tensor:
    return (matrices + matrices.mT) / 2


def _twice_symmetric(matrix: torch.Tensor) -> torch.Tensor:
    return matrix + matrix.mT
