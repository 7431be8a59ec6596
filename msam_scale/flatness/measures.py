"""All measures of flatness of one loss, by whatever products its Hessian has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite

from msam_scale.batch_tree import Batch, num_samples
from msam_scale.flatness.gradient_difference import DifferenceCurvature
from msam_scale.flatness.hessian_vector import check_batches
from msam_scale.flatness.lanczos import NotFiniteError, SymmetricOperator, largest_eigenvalues
from msam_scale.flatness.sharpness import LossSurface, m_sharpness, rho_sharpness
from msam_scale.flatness.trace import TraceEstimate, estimate_trace
from msam_scale.ranks import Ranks

TOLERANCE = 1e-4
"""Relative residual asked of eigenpairs where products allow it; those of float32 reach about 1e-6.
The eigenvalue's own error goes with the square."""


@dataclass(frozen=True)
class SharpnessRequest:
    """What is measured beside λ_max.

    Attributes:
        num_eigenvalues: how many of the largest.
        iterations: most Hessian-vector products of Lanczos.
        tolerance: of the eigenpairs' relative residuals; None: `TOLERANCE`, or, for
            differences, the measured error of a product if that is larger.
        num_probes: random vectors of the trace; None: no trace.
        rho: the distance of ρ- and m-sharpness; None: neither.
        seed: of Lanczos' start vector and the trace's probes.
    """

    num_eigenvalues: int = 1
    iterations: int = 100
    tolerance: float | None = None
    num_probes: int | None = None
    rho: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Sharpness:
    """How sharp the training loss is around the weights; the same on every rank.

    `float(sharpness)` is λ_max.

    Attributes:
        loss: the mean over all samples of all ranks, at the weights.
        eigenvalues: the largest of its Hessian, falling; the first is λ_max.
        residuals: ‖Hy - λy‖ of each eigenpair, relative to the largest magnitude of an eigenvalue.
        converged: whether these fell to the tolerance within the iterations.
        num_products: Hessian-vector products of Lanczos.
        product_error: relative error of a product with the first eigenvector, measured: 0 for exact
            products, up to rounding; for differences see `DifferenceCurvature.relative_error`.
        trace: of the Hessian, where asked for.
        rho: ρ, where asked for.
        rho_sharpness: L(w + ρ g/‖g‖) - L(w) over all samples, where asked for.
        m_sharpness: the mean of that over micro-batches, each with its own g, where asked for.
        micro_batch_size: samples of one such micro-batch, over all ranks.
        num_micro_batches: how many there were.
    """

    loss: float
    eigenvalues: list[float]
    residuals: list[float]
    converged: bool
    num_products: int
    product_error: float
    trace: TraceEstimate | None = None
    rho: float | None = None
    rho_sharpness: float | None = None
    m_sharpness: float | None = None
    micro_batch_size: int | None = None
    num_micro_batches: int | None = None

    @property
    def lambda_max(self) -> float:
        """λ_max, the largest eigenvalue."""
        return self.eigenvalues[0]

    def __float__(self) -> float:
        return self.lambda_max


def measure_sharpness(
    curvature_of: Callable[[Iterable[Batch]], SymmetricOperator],
    surface_of: Callable[[Iterable[Batch]], LossSurface],
    *,
    batches: Iterable[Batch],
    request: SharpnessRequest,
    ranks: Ranks,
) -> Sharpness:
    """Measures the flatness of a loss. Collective.

    Args:
        curvature_of: the Hessian of the loss over this rank's batches and those of all others.
        surface_of: that loss itself.
        batches: this rank's; the i-th ones of all ranks together are the i-th micro-batch.
        request: what to measure.
        ranks: this process's place among all.

    Raises:
        NotFiniteError: the loss or its derivatives are not finite.
        ValueError: a number in the request is out of range, `batches` is an iterator, or a rank has
            none.
    """
    check_batches(batches)
    surface = surface_of(batches)
    if not isfinite(loss := surface.loss()):
        raise NotFiniteError(f"the loss is {loss} at these weights, which has no flatness")
    curvature = curvature_of(batches)
    pairs = largest_eigenvalues(
        curvature,
        num_eigenvalues=request.num_eigenvalues,
        tolerance=request.tolerance or _tolerance(curvature, seed=request.seed),
        max_iterations=request.iterations,
        seed=request.seed,
    )
    error = 0.0
    if isinstance(curvature, DifferenceCurvature):
        error = curvature.relative_error(pairs.vectors[0])
    trace = rise = mean_rise = size = count = None
    if request.num_probes is not None:
        trace = estimate_trace(curvature, num_probes=request.num_probes, seed=request.seed)
    if request.rho is not None:
        rise = rho_sharpness(surface, rho=request.rho)
        size, count = _micro_batches(batches, ranks=ranks)
        parts = (batch for index, batch in enumerate(batches) if index < count)
        mean_rise = m_sharpness((surface_of([part]) for part in parts), rho=request.rho)
    return Sharpness(
        loss=loss,
        eigenvalues=pairs.values,
        residuals=pairs.residuals,
        converged=pairs.converged,
        num_products=pairs.num_products,
        product_error=error,
        trace=trace,
        rho=request.rho,
        rho_sharpness=rise,
        m_sharpness=mean_rise,
        micro_batch_size=size,
        num_micro_batches=count,
    )


def _tolerance(curvature: SymmetricOperator, *, seed: int) -> float:
    if not isinstance(curvature, DifferenceCurvature):
        return TOLERANCE
    # A product leans towards the largest eigenvalues, whose products matter.
    leaning = curvature.product(curvature.random_signs(seed))
    return max(TOLERANCE, curvature.relative_error(leaning))


def _micro_batches(batches: Iterable[Batch], *, ranks: Ranks) -> tuple[int, int]:
    """The size of a micro-batch over all ranks, and how many there are of that size.

    They are the first ones: batches of another size, and those that a rank has no more of, come
    last and are left out.
    """
    sizes = ranks.gathered([num_samples(batch) for batch in batches])
    totals = [sum(parts) for parts in zip(*sizes, strict=False)]
    count = next((i for i, total in enumerate(totals) if total != totals[0]), len(totals))
    return totals[0], count
