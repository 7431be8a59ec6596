"""A run opened in one process: its newest checkpoint, its training samples and its loss."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.batch_tree import Batch, narrow, num_samples
from msam_scale.checkpoint import Progress, find_checkpoint, load_weights
from msam_scale.config import Config
from msam_scale.flatness.hessian_vector import ExactCurvature
from msam_scale.flatness.training_samples import TrainingSamples
from msam_scale.losses import LossFunction
from msam_scale.precision import PRECISIONS
from msam_scale.ranks import join
from msam_scale.training.prepare import PreparedRun, prepare_run

# A run opens in one process as it was trained on many: none of this changes the weights.
_ONE_PROCESS = (
    "sharding.strategy=replicated",
    "sharding.shard_group=null",
    "sharding.deepspeed=null",
    "sharding.offload=false",
    "data.val=null",
    "training.eval_every=null",
    "training.metrics=[accuracy]",
    "monitor.sharpness_every=null",
    "monitor.sharpness_samples=1024",
)

# A derivative of a gradient takes several times the memory of a training step, on one device.
_MOST_AT_ONCE = 128


@dataclass(frozen=True)
class OpenedRun:
    """A run at its newest checkpoint.

    Attributes:
        folder: of the run.
        checkpoint: its newest one.
        prepared: config and data.
        model: with the checkpoint's weights, on `device`, in the parameters' type.
        loss_fn: the run's: label smoothing included, weight decay not.
        device: where it computes.
    """

    folder: Path
    checkpoint: Path
    prepared: PreparedRun
    model: nn.Module
    loss_fn: LossFunction
    device: torch.device

    @property
    def config(self) -> Config:
        """The run's, for one process."""
        return self.prepared.config

    @property
    def step(self) -> int:
        """Optimizer steps of the checkpoint."""
        return Progress.read(self.checkpoint).step

    def samples(self, *, num_samples: int | None, batch_size: int) -> TrainingSamples:
        """Training samples, `batch_size` at a time.

        Raises:
            UserError: there are fewer than `num_samples`.
        """
        there = self.prepared.data.train.index.num_samples
        if num_samples is not None and num_samples > there:
            raise UserError(f"--samples {num_samples} is more than the {there} that there are")
        return TrainingSamples(
            self.prepared.data, self.config, num_samples=num_samples, batch_size=batch_size
        )

    def curvature(self, parts: Iterable[Batch], *, at_once: int) -> ExactCurvature:
        """The loss over some samples; at most `at_once`, or `batch.chunk`, go through the model."""
        size = self.config.batch.chunk or min(at_once, _MOST_AT_ONCE)
        return ExactCurvature(self.model, loss_fn=self.loss_fn, batches=_Chunks(parts, size=size))


def open_run(folder: Path, *, command: str, allow_code: bool) -> OpenedRun:
    """Opens a run at its newest checkpoint; writes nothing.

    Args:
        folder: of the run.
        command: who asks, for messages.
        allow_code: whether code and commands that the run's config names may run.

    Raises:
        UserError: no run or checkpoint there, its data are gone or changed, or this is one of
            several processes.
    """
    ranks = join()
    if ranks.size > 1:
        raise UserError(f"{command} runs in one process, not in {ranks.size}; start it by itself")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run here (no config.yaml); a folder such as runs/NAME works")
    checkpoint = find_checkpoint(folder / "checkpoints")
    # The folder may lie elsewhere than where the run was trained.
    place = folder.resolve()
    prepared = prepare_run(
        folder / "config.yaml",
        overrides=(
            *_ONE_PROCESS,
            f"run.dir={json.dumps(str(place.parent))}",
            f"run.name={json.dumps(place.name)}",
            "checkpoint.resume=auto",
        ),
        world_size=1,
        allow_code=allow_code,
    )
    dtype = PRECISIONS[prepared.config.precision].parameters
    model = prepared.model.to(dtype)
    load_weights(checkpoint, model)
    return OpenedRun(
        folder=folder,
        checkpoint=checkpoint,
        prepared=prepared,
        model=model.to(ranks.device),
        loss_fn=prepared.data.task.loss_fn(
            dtype=dtype, label_smoothing=prepared.config.training.label_smoothing
        ),
        device=ranks.device,
    )


@dataclass(frozen=True)
class _Chunks:
    """Batches cut into pieces of at most `size` samples, each time it is gone through."""

    batches: Iterable[Batch]
    size: int

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            total = num_samples(batch)
            for start in range(0, total, self.size):
                yield narrow(batch, start, min(self.size, total - start))
