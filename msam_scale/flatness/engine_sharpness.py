"""Flatness at an engine's present weights, under whatever sharding it trains with."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from msam_scale.batch_tree import Batch
from msam_scale.flatness.gradient_difference import DifferenceCurvature
from msam_scale.flatness.hessian_vector import ExactCurvature
from msam_scale.flatness.measures import Sharpness, SharpnessRequest, measure_sharpness

if TYPE_CHECKING:
    from msam_scale.engine import Engine

_logger = logging.getLogger("msam_scale")

_MOST_ERROR = 0.1


def engine_sharpness(
    self: Engine,
    batches: Iterable[Batch],
    *,
    iterations: int = 100,
    num_eigenvalues: int = 1,
    tolerance: float | None = None,
    num_probes: int | None = None,
    rho: float | None = None,
) -> Sharpness:
    """λ_max of the Hessian of the training loss, and other measures of flatness. Collective.

    The loss is the mean over all samples of all ranks' batches, each sample with the same weight,
    as `loss_fn` computes it of the present weights in evaluation mode: dropout is off, and batch
    normalization uses its running statistics. Where each rank has whole parameters, Hessian-vector
    products are exact, each rank's share of the samples summed over all. Where parameters are
    sharded, or narrower than float32 (ZeRO), and for compiled models, which cannot be
    differentiated twice, they are central differences of gradients that the model computes as it
    trains, with an error that is measured (`product_error`): small for smooth models in float32,
    some percent in bfloat16. For ReLUs, at whose kinks gradients jump, differences are of no use;
    an error above 10 % is said. `msam-scale sharpness` on a checkpoint is exact whatever the run
    was sharded by. To be called between two steps, which come out as without it, bit for bit.

    Args:
        self: the engine.
        batches: this rank's part of the samples, no sample twice, as `loss_fn` takes them, on any
            device. They are gone through many times and have to be the same each time: a list, or
            a loader that does not shuffle; no iterator. Each rank needs one at least; their numbers
            and sizes may differ between ranks, but all wait for the one that has most.
        iterations: most Hessian-vector products for the eigenvalues. One costs two gradients, or a
            gradient and its derivative. Each keeps a vector the size of this rank's part of the
            parameters.
        num_eigenvalues: how many of the largest.
        tolerance: of the eigenpairs' relative residuals, at which Lanczos stops; by default what
            the products' accuracy allows.
        num_probes: random vectors for the trace, 2 or more; without, it is left out.
        rho: distance ρ of the ρ-sharpness and of the m-sharpness, for which the i-th batches of all
            ranks together are one micro-batch; without, both are left out.

    Raises:
        NotFiniteError: the loss or a derivative is not finite.
        ValueError: an argument is out of range, `batches` is an iterator, or a rank has none.
    """
    exact = _is_exact(self)

    def curvature_of(
        parts: Iterable[Batch], *, step: float | None = None
    ) -> ExactCurvature | DifferenceCurvature:
        if exact:
            return ExactCurvature(
                self.module, loss_fn=self._loss_fn, batches=parts, world=self.ranks.world
            )
        return DifferenceCurvature(
            self._sharding,
            loss_fn=self._loss_fn,
            batches=parts,
            ranks=self.ranks,
            plan=self._followed,  # where a phase ends, `plan` is the next step's already
            precision=self._precision,
            step=step,
            seed=self.config.run.seed,
        )

    # A loader may draw from torch's generators, of which the run's next step may draw, too.
    device = self.ranks.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        found = measure_sharpness(
            curvature_of,
            # Without products no step has to be found for them.
            lambda parts: curvature_of(parts, step=1.0),
            batches=batches,
            request=SharpnessRequest(
                num_eigenvalues=num_eigenvalues,
                iterations=iterations,
                tolerance=tolerance,
                num_probes=num_probes,
                rho=rho,
                seed=self.config.run.seed,
            ),
            ranks=self.ranks,
        )
    if found.product_error > _MOST_ERROR and self.ranks.is_first:
        _logger.warning(
            "Hessian-vector products by differences are uncertain by %.0f %%: λ_max may be off by "
            "any factor (a model with kinks, such as ReLUs, or a narrow precision). `msam-scale "
            "sharpness RUN` on a checkpoint is exact.",
            100 * found.product_error,
        )
    return found


def _is_exact(engine: Engine) -> bool:
    """Whether the model can be differentiated twice where it is."""
    config = engine.config
    if config.training.compile:  # whose backward has no derivative
        return False
    if config.sharding.strategy == "replicated":
        return True
    # ZeRO-1 and 2: whole parameters, in the type that the model computes in.
    return not engine.forward_is_collective and config.precision == "float32"
