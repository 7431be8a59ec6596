"""λ_max while a run trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msam_scale.batch_tree import Batch
from msam_scale.engine import Engine
from msam_scale.flatness.lanczos import NotFiniteError
from msam_scale.flatness.training_samples import TrainingSamples

if TYPE_CHECKING:
    from msam_scale.training.data import RunData


def training_sharpness(
    engine: Engine, data: RunData, *, before_each_pass: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """λ_max of the training loss's Hessian at the present weights. Collective.

    It is over `monitor.sharpness_samples` training samples, the same ones each time and those of
    `msam-scale sharpness RUN --samples N`, without augmentation. The run goes on as without it, bit
    for bit (`Engine.sharpness`).

    Args:
        engine: between two steps.
        data: the run's.
        before_each_pass: called before each pass over the samples, equally often on all ranks; what
            it raises ends the measurement, with the weights as they were.

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
        found = engine.sharpness(_Passes(samples, before_each_pass))
    except NotFiniteError:
        return float("nan"), float("nan")
    return found.lambda_max, max(found.residuals[0], found.product_error)


@dataclass(frozen=True)
class _Passes:
    """Samples that are gone through again and again."""

    samples: TrainingSamples
    before_each: Callable[[], None]

    def __iter__(self) -> Iterator[Batch]:
        self.before_each()
        return iter(self.samples)
