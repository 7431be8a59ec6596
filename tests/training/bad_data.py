"""Training runs on this rank whose loss goes wrong on chosen mini-batches of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from faults import replaced

from data_pipelines import MicroBatchLoader, Split, transform_preset
from msam_scale.ranks import join
from msam_scale.supervision.supervision import Supervision
from msam_scale.training import prepare_run, run_training
from msam_scale.training.tasks import ImageTask

ASCENT, DESCENT = 0, 1


class KilledError(Exception):
    """Stands for the end of the process."""


def train_with_bad_data(
    config: str, *words: str, bad: Mapping[int, int], killed_at: int | None = None
) -> None:
    """Trains as `msam-scale train` does. Collective.

    Args:
        config: of images, in the global order, with whole micro-batches in a chunk.
        words: settings of the command line.
        bad: for a mini-batch, counted from 0 in the order of the data, the pass whose loss is not a
            number; the gradient of that loss is finite.
        killed_at: the call of the loss, from 0 on, that ends the run.
    """
    ranks = join()
    prepared = prepare_run(config, overrides=words, world_size=ranks.size)
    marks = {number: _first_image(prepared.data.train, prepared.config, number) for number in bad}
    passes_seen = dict.fromkeys(bad, 0)
    num_calls = 0
    make_loss = ImageTask.loss_fn

    def loss_fn(task: ImageTask, **arguments: Any) -> Any:
        loss_of = make_loss(task, **arguments)

        def going_wrong(model: Any, batch: Any) -> torch.Tensor:
            nonlocal num_calls
            if num_calls == killed_at:
                raise KilledError
            num_calls += 1
            loss: torch.Tensor = loss_of(model, batch)
            for number, image in marks.items():
                if (batch[0] == image).flatten(1).all(dim=1).any():
                    passes_seen[number] += 1
                    if (passes_seen[number] - 1) % 2 == bad[number]:
                        loss = loss + float("nan")
            return loss

        return going_wrong

    with replaced(ImageTask, "loss_fn", loss_fn):
        supervision = Supervision(prepared.config.faults, code=75)
        supervision.join(ranks)
        try:
            run_training(prepared, ranks=ranks, supervision=supervision)
        finally:
            supervision.leave()
            supervision.stop.close()


def _first_image(train: Split, config: Any, number: int) -> torch.Tensor:
    loader = MicroBatchLoader(
        train.index,
        order="global",
        seed=config.run.seed,
        batch_size=config.batch.size,
        positions=[[0]],
        transform=transform_preset("none"),
        num_workers=0,
        first_step=number,
        num_steps=1,
    )
    (batch,) = loader
    image: torch.Tensor = batch[0][0].clone()
    return image
