"""λ_max while a run trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msam_scale.engine import Engine
from msam_scale.flatness.lanczos import NotFiniteError
from msam_scale.flatness.training_samples import TrainingSamples

if TYPE_CHECKING:
    from msam_scale.training.data import RunData


def training_sharpness(engine: Engine, data: RunData) -> tuple[float, float]:
    """λ_max of the training loss's Hessian at the present weights. Collective.

    It is over `monitor.sharpness_samples` training samples, the same ones each time and those of
    `msam-scale sharpness RUN --samples N`, without augmentation. The run goes on as without it, bit
    for bit (`Engine.sharpness`).

    Args:
        engine: between two steps.
        data: the run's.

    Returns:
        λ_max and the larger of its relative residual and its products' error, equal on all ranks;
        not-a-number where loss or derivatives are not finite, which is no reason to end a run.
    """
    config, ranks = engine.config, engine.ranks
    # Each rank needs a batch.
    total = max(config.monitor.sharpness_samples, ranks.size)
    share = min(total, data.train.index.num_samples) // ranks.size
    samples = TrainingSamples(
        data,
        config,
        num_samples=total,
        batch_size=max(1, min(config.batch.chunk or engine.plan.slice_size, share)),
        rank=ranks.rank,
        num_ranks=ranks.size,
    )
    try:
        found = engine.sharpness(samples)
    except NotFiniteError:
        return float("nan"), float("nan")
    return found.lambda_max, max(found.residuals[0], found.product_error)
