"""Loss and accuracy over a whole validation set, each sample once at any world size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from data_pipelines import DevicePrefetcher, EvaluationLoader
from msam_scale.engine import Engine
from msam_scale.training.data import RunData

# A forward that keeps nothing for a backward takes a fraction of a training chunk's memory.
_CHUNKS_AT_ONCE = 4


@dataclass(frozen=True)
class Evaluation:
    """Figures over a validation set, equal on all ranks."""

    loss: float
    accuracy: float
    samples: int


def evaluate(
    engine: Engine,
    data: RunData,
    *,
    prepare: Callable[[torch.Tensor], torch.Tensor],
) -> Evaluation:
    """Evaluates the model as it is, on the validation data of a run. Collective.

    The sums meet once at the end. Where a forward is collective, ranks with fewer batches than
    others run forwards whose result nobody counts.

    Args:
        engine: its model is put back in training mode afterwards.
        data: the run's.
        prepare: turns uint8 images on the device into the model's inputs.
    """
    assert data.val is not None, "a run without validation data is not evaluated"
    index, section = data.val.index, engine.config.data
    device = engine.ranks.device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    loader = EvaluationLoader(
        index,
        batch_size=_CHUNKS_AT_ONCE * (engine.config.batch.chunk or engine.plan.slice_size),
        rank=engine.ranks.rank,
        num_ranks=engine.ranks.size,
        transform=data.transform,
        num_workers=section.workers,
        max_host_bytes=section.memory_limit,
        source=data.val.source,
    )
    engine.eval()
    with torch.no_grad():
        for images, labels in DevicePrefetcher(loader, device=device):
            logits = engine.predict(prepare(images))
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            sums[0] += F.cross_entropy(logits, labels, reduction="sum")
            sums[1] += (logits.argmax(dim=1) == labels).sum()
            sums[2] += len(labels)
        if engine.forward_is_collective:
            most = loader.num_blocks_of(0)
            for _ in range(most - len(loader)):
                engine.predict(prepare(_blank_image(data, device=device)))
    engine.train()
    if engine.ranks.world is not None:
        dist.all_reduce(sums, group=engine.ranks.world)
    loss, correct, count = sums.tolist()
    assert count == index.num_samples, f"evaluated {count} of {index.num_samples} samples"
    return Evaluation(loss=loss / count, accuracy=correct / count, samples=int(count))


def _blank_image(data: RunData, *, device: torch.device) -> torch.Tensor:
    return torch.zeros((1, *data.image_shape), dtype=torch.uint8, device=device)
