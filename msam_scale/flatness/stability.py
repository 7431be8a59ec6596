"""Section 3 of the paper as code: which minima SGD, SAM and mSAM can stay in.

Near a minimum w* an update of the three methods is linear in w − w*, with a matrix J_S(w*) that
depends on the mini-batch S (equation (9)). What decides whether they stay is the mean and variance
of this matrix over mini-batches:

    J* = E[J_S],   Σ = E[(J_S − J*)²],   both (p, p) for p parameters.

| symbol | meaning |
| --- | --- |
| H_i, H̄ | Hessian of example i's loss at w*; the mean over all n examples |
| H_S, H_{S_j} | the mean over the B samples of the mini-batch S, the B / m of its micro-batch S_j |
| η, ρ | learning rate; radius of the *unnormalised* ascent ε = ρ ∇L (Assumption 3.2) |
| Ω | J* of mSAM − J* of SAM: ρ times the mean variance of a micro-batch within its mini-batch |
| λ₁ | spectral norm: the largest eigenvalue by magnitude |
| α, β | J* = β Σ (Assumption 3.1), and α, which makes α λ₁(J*) ≤ 1 the condition of stability |

`linearize` gives J*, Σ and Ω of all three methods, exactly and in float64; `check_stability` the
conditions (11)–(13); `Alignment` and `edge_of_stability` what rests on Assumption 3.1, which is
(14)–(16) and Theorem 3.2. `msam_scale.flatness.sampling` says how mini-batches are drawn.

**α.** The paper prints α = max{η/2, η²β}. With J* = βΣ, condition (13) is η λ₁(J*) > 2 or
η² λ₁(J*) / β > 1, which is α λ₁(J*) > 1 with α = max{η/2, η²/β}: that is the α here. The proof of
Theorem 3.2 in the paper uses Σ = H / β as well.

**Theorem 3.1.** J₃* ⪰ J₂* ⪰ J₁* always holds, so the half of (13) with J* only gets worse from SGD
to SAM to mSAM. The half with Σ need not: λ₁(Σ₃) can be below λ₁(Σ₂), and SAM unstable by (13) where
mSAM is stable (five examples with Hessians 1, 1, 1, 0, 0; B = m = 2, ρ = 0.3, η = 2.5). With
Assumption 3.1, one β for all three, (13) is a statement about J* alone and the theorem holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch

from msam_scale.flatness.linearization import (
    JacobianMoments,
    batch_jacobian,
    checked_hessians,
    jacobian_moments,
)
from msam_scale.flatness.sampling import BatchSampling

__all__ = [
    "Alignment",
    "BatchSampling",
    "Edge",
    "JacobianMoments",
    "Linearization",
    "LinearizedMethod",
    "StabilityCheck",
    "alignment",
    "batch_jacobian",
    "check_stability",
    "edge_of_stability",
    "jacobian_moments",
    "linearize",
    "spectral_norm",
]


@dataclass(frozen=True)
class LinearizedMethod:
    """One method near w*.

    Attributes:
        jacobian: J*, (p, p), float64.
        covariance: Σ, (p, p), float64.
    """

    jacobian: torch.Tensor
    covariance: torch.Tensor


@dataclass(frozen=True)
class Linearization:
    """SGD, SAM and mSAM near w* (Lemma 3.4); the subscripts 1, 2 and 3 of the paper.

    Attributes:
        sampling: n, B, m and how mini-batches are drawn.
        rho: ρ.
        hessian: H̄, (p, p), float64.
        omega: Ω of (24), (p, p), float64.
        vanilla: J₁* and Σ₁.
        sam: J₂* and Σ₂.
        msam: J₃* and Σ₃.
    """

    sampling: BatchSampling
    rho: float
    hessian: torch.Tensor
    omega: torch.Tensor
    vanilla: LinearizedMethod
    sam: LinearizedMethod
    msam: LinearizedMethod


def linearize(
    hessians: torch.Tensor,
    *,
    batch_size: int,
    micro_batches: int,
    rho: float,
    replacement: bool = False,
) -> Linearization:
    """J*, Σ and Ω of the three methods, exactly (no mini-batch is drawn).

    Theory wants every H_i symmetric and positive semi-definite, as at a minimum that fits all
    examples. Symmetry is checked. The formulas hold without definiteness, and J₃* ⪰ J₂* ⪰ J₁* too.

    Args:
        hessians: H_i(w*), (n, p, p), as from `example_hessians`.
        batch_size: B.
        micro_batches: m of mSAM; must divide B.
        rho: ρ ≥ 0 of SAM and mSAM.
        replacement: draw mini-batches with replacement; without, by default.

    Raises:
        ValueError: Hessians that are none, sizes that do not fit, a negative ρ.
    """
    _check_range("rho", rho, positive=False)
    num_examples = checked_hessians(hessians).shape[0]
    sampling = BatchSampling(num_examples, batch_size, micro_batches, replacement)
    one_batch = BatchSampling(num_examples, batch_size, 1, replacement)
    msam = jacobian_moments(hessians, sampling=sampling)
    sam = jacobian_moments(hessians, sampling=one_batch)
    within = float(sampling.micro_batch_variance - sampling.batch_variance)
    centred = checked_hessians(hessians) - sam.mean[0]
    return Linearization(
        sampling=sampling,
        rho=rho,
        hessian=sam.mean[0],
        omega=rho * within * (centred @ centred).mean(0),
        vanilla=_at(sam, rho=0.0),
        sam=_at(sam, rho=rho),
        msam=_at(msam, rho=rho),
    )


def _at(moments: JacobianMoments, *, rho: float) -> LinearizedMethod:
    return LinearizedMethod(moments.jacobian(rho=rho), moments.covariance(rho=rho))


@dataclass(frozen=True)
class StabilityCheck:
    """The conditions of section 3.1 for one method and one learning rate.

    Attributes:
        mean_bound: η λ₁(J*); S₁ of (12) is `mean_bound` ≤ 2 (Lemma 3.2).
        variance_bound: η² λ₁(Σ); S₂ of (12) is `variance_bound` ≤ 1.
        mean_square: λ₁((I − η J*)² + η² Σ); the exact condition (11) is `mean_square` ≤ 1.
    """

    mean_bound: float
    variance_bound: float
    mean_square: float

    @property
    def stable(self) -> bool:
        """Condition (12), by which the paper defines stability; `not stable` is (13)."""
        return self.mean_bound <= 2 and self.variance_bound <= 1

    @property
    def mean_square_stable(self) -> bool:
        """Condition (11): ‖w − w*‖² does not grow in expectation, from any w. It implies (12).

        In flat directions nothing moves and (11) holds with equality, hence a tolerance of 1e-9.
        """
        return self.mean_square <= 1 + 1e-9


def check_stability(method: LinearizedMethod, *, learning_rate: float) -> StabilityCheck:
    """Conditions (11) to (13).

    Args:
        method: one of a `Linearization`.
        learning_rate: η > 0.
    """
    _check_range("learning_rate", learning_rate, positive=True)
    identity = torch.eye(method.jacobian.shape[0], dtype=torch.float64)
    contraction = identity - learning_rate * method.jacobian
    growth = contraction @ contraction + learning_rate**2 * method.covariance
    return StabilityCheck(
        mean_bound=learning_rate * spectral_norm(method.jacobian),
        variance_bound=learning_rate**2 * spectral_norm(method.covariance),
        mean_square=spectral_norm(growth),
    )


@dataclass(frozen=True)
class Alignment:
    """Assumption 3.1, J* = β Σ, for one β.

    Attributes:
        beta: β > 0.
        misfit: ‖J* − β Σ‖ / ‖J*‖ (Frobenius) where β was fitted: 0 if the assumption holds, 1 if J*
            and Σ have nothing in common.
    """

    beta: float
    misfit: float = 0.0

    def alpha(self, *, learning_rate: float) -> float:
        """α = max{η/2, η²/β}; the module says why it is not the printed η²β."""
        _check_range("learning_rate", learning_rate, positive=True)
        return max(learning_rate / 2, learning_rate**2 / self.beta)

    def edge_ratio(self, method: LinearizedMethod, *, learning_rate: float) -> float:
        """α λ₁(J*): ≤ 1 stable (14), > 1 unstable (15), = 1 the edge of stability (16)."""
        return self.alpha(learning_rate=learning_rate) * spectral_norm(method.jacobian)


def alignment(method: LinearizedMethod) -> Alignment:
    """The β that fits J* = β Σ best (least squares), and how well it does.

    Raises:
        ValueError: Σ is zero, as with SGD and SAM on full batches: no β exists.
    """
    jacobian, covariance = method.jacobian, method.covariance
    square = float((covariance * covariance).sum())
    beta = float((jacobian * covariance).sum()) / square if square else 0.0
    if beta <= 0:
        raise ValueError(
            "Σ is zero or unlike J*, so no β > 0 gives J* = β Σ (Assumption 3.1); use "
            "check_stability, or a batch_size below the number of examples"
        )
    misfit = torch.linalg.matrix_norm(jacobian - beta * covariance)
    return Alignment(beta, float(misfit / torch.linalg.matrix_norm(jacobian)))


@dataclass(frozen=True)
class Edge:
    """λ₁(H*) of the sharpest minimum that each method can sit in (Theorem 3.2).

    Attributes:
        vanilla: λ₁(H₁*).
        sam: λ₁(H₂*).
        msam: λ₁(H₃*).
    """

    vanilla: float
    sam: float
    msam: float


def edge_of_stability(
    sampling: BatchSampling, *, beta: float, rho: float, learning_rate: float
) -> Edge:
    """λ₁(H*) at the edge of stability of the three methods, under Assumption 3.1.

    As in the proof of Theorem 3.2, H* = β Σ₁ makes J* a polynomial in H*, and α λ₁(J*) = 1 a
    quadratic equation for λ₁(H*): α (1 + ρ c / β) λ₁ + α ρ λ₁² = 1, c = 1 for SAM. For mSAM the
    paper needs no more than Ω ⪰ 0; here Ω = (c − 1) ρ Σ₁ exactly, with c the variance of a
    micro-batch over that of a mini-batch (m with replacement, m (n − B/m) / (n − B) without).

    Args:
        sampling: n, B, m and how mini-batches are drawn; B below n without replacement, since full
            batches have Σ₁ = 0 and so no β.
        beta: β > 0, one for the three methods as in the paper.
        rho: ρ ≥ 0.
        learning_rate: η > 0.
    """
    _check_range("beta", beta, positive=True)
    _check_range("rho", rho, positive=False)
    if not sampling.batch_variance:
        raise ValueError(
            f"batch_size {sampling.batch_size} is all {sampling.num_examples} examples: Σ₁ is "
            "zero and Assumption 3.1 has no β; take a smaller batch_size"
        )
    alpha = Alignment(beta).alpha(learning_rate=learning_rate)
    micro_batch_factor = float(sampling.micro_batch_variance / sampling.batch_variance)
    return Edge(
        vanilla=1 / alpha,
        sam=_positive_root(alpha * rho, alpha * (1 + rho / beta)),
        msam=_positive_root(alpha * rho, alpha * (1 + rho * micro_batch_factor / beta)),
    )


def _positive_root(square: float, linear: float) -> float:
    """X > 0 with square · x² + linear · x = 1, in the form that is exact at square = 0."""
    return 2 / (linear + sqrt(linear**2 + 4 * square))


def spectral_norm(matrix: torch.Tensor) -> float:
    """λ₁(A): the largest eigenvalue of a symmetric matrix by magnitude."""
    return float(torch.linalg.eigvalsh(matrix).abs().max())


def _check_range(name: str, value: float, *, positive: bool) -> None:
    if not 0 <= value < float("inf") or (positive and value == 0):
        raise ValueError(f"{name} is {value}; it must be {'above' if positive else 'at least'} 0")
