"""Loss and metrics over a whole validation set, each sample once at any world size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from data_pipelines import DevicePrefetcher, EvaluationLoader
from msam_scale.engine import Engine
from msam_scale.precision import PRECISIONS
from msam_scale.training.data import RunData
from msam_scale.training.metrics import CLASSIFICATION_METRICS, AnswerCounts

# A forward that keeps nothing for a backward takes a fraction of a training chunk's memory.
_CHUNKS_AT_ONCE = 4


@dataclass(frozen=True)
class Evaluation:
    """Figures over a validation set, equal on all ranks.

    Attributes:
        loss: mean cross-entropy.
        metrics: the config's `training.metrics`, by name.
        samples: how many.
    """

    loss: float
    metrics: Mapping[str, float]
    samples: int

    def figures(self, *, prefix: str = "") -> dict[str, float]:
        """Loss and metrics by name, as metric lines have them."""
        return {f"{prefix}{name}": v for name, v in {"loss": self.loss, **self.metrics}.items()}


def evaluate(
    engine: Engine, data: RunData, *, before_each_batch: Callable[[], None] = lambda: None
) -> Evaluation:
    """Evaluates the model as it is, on the validation data of a run. Collective.

    The sums meet once at the end. Where a forward is collective, ranks with fewer batches than
    others run forwards whose result nobody counts.

    Args:
        engine: its model is put back in training mode afterwards.
        data: the run's.
        before_each_batch: called equally often on all ranks; what it raises ends the evaluation.
    """
    assert data.val is not None, "a run without validation data is not evaluated"
    index, task, config = data.val.index, data.task, engine.config
    dtype, device = PRECISIONS[config.precision].parameters, engine.ranks.device
    loss = torch.zeros(1, dtype=torch.float64, device=device)
    answers = AnswerCounts(num_classes=task.num_classes, device=device)
    loader = EvaluationLoader(
        index,
        batch_size=_CHUNKS_AT_ONCE * (config.batch.chunk or engine.plan.slice_size),
        rank=engine.ranks.rank,
        num_ranks=engine.ranks.size,
        transform=task.transform,
        num_workers=config.data.workers,
        max_host_bytes=config.data.memory_limit,
        source=data.val.source,
    )
    engine.eval()
    with torch.no_grad():
        for batch in DevicePrefetcher(loader, device=device):
            before_each_batch()
            logits, labels = task.logits(engine.predict, batch, dtype=dtype)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss += F.cross_entropy(logits, labels, reduction="sum")
            answers.add(logits, labels)
        blank = task.blank_batch(device=device) if engine.forward_is_collective else None
        for _ in range(loader.num_blocks_of(0) - len(loader)):
            before_each_batch()
            if blank is not None:
                task.logits(engine.predict, blank, dtype=dtype)
    engine.train()
    sums = torch.cat([loss, answers.counts])
    if engine.ranks.world is not None:
        dist.all_reduce(sums, group=engine.ranks.world)
    answers.counts.copy_(sums[1:])
    pairs = answers.answers()
    count = int(pairs[2].sum())
    assert count == index.num_samples, f"evaluated {count} of {index.num_samples} samples"
    metrics: dict[str, float] = {
        name: CLASSIFICATION_METRICS[name](pairs) for name in config.training.metrics
    }
    return Evaluation(loss=float(sums[0]) / count, metrics=metrics, samples=count)
