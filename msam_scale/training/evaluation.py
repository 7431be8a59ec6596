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


class Evaluator:
    """Evaluates on the validation data of a run; its loader processes stay between evaluations.

    Args:
        engine: whose model it is.
        data: the run's.
    """

    def __init__(self, engine: Engine, data: RunData) -> None:
        assert data.val is not None, "a run without validation data is not evaluated"
        self._engine, self._val, self._task = engine, data.val, data.task
        self._loader: EvaluationLoader | None = None
        self._batch_size = 0

    def evaluate(self, *, before_each_batch: Callable[[], None] = lambda: None) -> Evaluation:
        """Evaluates the model as it is, and puts it back in training mode. Collective.

        The sums meet once at the end. Where a forward is collective, ranks with fewer batches than
        others run forwards whose result nobody counts.

        Args:
            before_each_batch: called equally often on all ranks; what it raises ends the
                evaluation.
        """
        engine, task, config = self._engine, self._task, self._engine.config
        dtype, device = PRECISIONS[config.precision].parameters, engine.ranks.device
        loss = torch.zeros(1, dtype=torch.float64, device=device)
        answers = AnswerCounts(num_classes=task.num_classes, device=device)
        loader = self._started_loader()
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
        count, expected = int(pairs[2].sum()), self._val.index.num_samples
        assert count == expected, f"evaluated {count} of {expected} samples"
        metrics: dict[str, float] = {
            name: CLASSIFICATION_METRICS[name](pairs) for name in config.training.metrics
        }
        return Evaluation(loss=float(sums[0]) / count, metrics=metrics, samples=count)

    def close(self) -> None:
        """Ends the loader processes."""
        self._loader = None

    def _started_loader(self) -> EvaluationLoader:
        engine, config = self._engine, self._engine.config
        batch_size = _CHUNKS_AT_ONCE * (config.batch.chunk or engine.plan.slice_size)
        if self._loader is None or batch_size != self._batch_size:  # phases change the plan
            self.close()
            self._batch_size = batch_size
            self._loader = EvaluationLoader(
                self._val.index,
                batch_size=batch_size,
                rank=engine.ranks.rank,
                num_ranks=engine.ranks.size,
                transform=self._task.transform,
                num_workers=config.data.workers,
                max_host_bytes=config.data.memory_limit,
                source=self._val.source,
            )
        return self._loader
