"""The flatness of a run: its newest checkpoint, on its training data, in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from data_pipelines import GlobalOrder, IndexedDataset, TransformPreset
from data_pipelines.errors import UserError
from msam_scale.batch_tree import Batch, narrow, num_samples
from msam_scale.checkpoint import find_checkpoint, read_progress
from msam_scale.flatness.hessian_vector import ExactCurvature
from msam_scale.flatness.lanczos import Eigenpairs, largest_eigenvalues
from msam_scale.flatness.sharpness import m_sharpness, rho_sharpness
from msam_scale.flatness.trace import TraceEstimate, estimate_trace
from msam_scale.precision import PRECISIONS
from msam_scale.ranks import join
from msam_scale.training.image_loss import image_loss
from msam_scale.training.prepare import PreparedRun, prepare_run

# Products in float32 reach about 1e-6. The eigenvalue's own error goes with the square of this.
TOLERANCE = 1e-4

# A run opens in one process as it was trained on many: none of this changes the weights.
_ONE_PROCESS = (
    "sharding.strategy=replicated",
    "sharding.shard_group=null",
    "sharding.deepspeed=null",
    "sharding.offload=false",
    "data.val=null",
)


@dataclass(frozen=True)
class Request:
    """What is measured; None takes the run's own.

    Attributes:
        num_eigenvalues: how many of the largest.
        num_samples: training samples that count, a random part of them all; None: all.
        num_probes: random vectors for the trace; None: no trace.
        max_iterations: most Hessian-vector products of Lanczos.
        rho: the distance of the sharpness.
        micro_batches: m, for the size B/m of the micro-batches of the m-sharpness.
    """

    num_eigenvalues: int = 1
    num_samples: int | None = None
    num_probes: int | None = None
    max_iterations: int = 100
    rho: float | None = None
    micro_batches: int | None = None


@dataclass(frozen=True)
class RunFlatness:
    """Flatness of the training loss at a run's weights.

    The loss is the run's (label smoothing included, weight decay not), of the samples as they are
    stored, without augmentation, dropout and stochastic depth; batch normalization uses its running
    statistics. What a bfloat16 or float16 run computes in these types is computed in float32.

    Attributes:
        step: of the checkpoint.
        num_samples: training samples that counted.
        num_parameters: trained parameters.
        loss: the loss.
        eigenpairs: the largest eigenvalues of its Hessian.
        trace: of its Hessian, where asked for.
        rho: ρ.
        rho_sharpness: over all samples.
        m_sharpness: over micro-batches of `micro_batch_size` of them.
        micro_batch_size: B/m.
        num_micro_batches: how many of that size the samples make.
    """

    step: int
    num_samples: int
    num_parameters: int
    loss: float
    eigenpairs: Eigenpairs
    trace: TraceEstimate | None
    rho: float
    rho_sharpness: float
    m_sharpness: float
    micro_batch_size: int
    num_micro_batches: int


def measure_run(folder: Path, request: Request) -> RunFlatness:
    """Measures the flatness of a run at its newest checkpoint; writes nothing.

    Args:
        folder: of the run.
        request: what to measure.

    Raises:
        UserError: no run or checkpoint there, its data are gone or changed, its loss is not finite,
            or more samples or micro-batches are asked for than there are.
    """
    ranks = join()
    if ranks.size > 1:
        raise UserError(f"sharpness runs in one process, not in {ranks.size}; start it by itself")
    checkpoint = _checkpoint_of(folder)
    prepared = _open(folder, checkpoint)
    config, device = prepared.config, ranks.device
    dtype = PRECISIONS[config.precision].parameters
    model = prepared.model.to(dtype)
    _load_weights(model, checkpoint)
    model.to(device)
    micro_batches = _micro_batches(prepared, request)
    loss_fn = image_loss(
        prepared.data.transform,
        dtype=dtype,
        num_classes=prepared.data.train.index.num_classes,
        label_smoothing=config.training.label_smoothing,
    )
    chunk = config.batch.chunk or micro_batches.size

    def curvature_of(parts: Iterable[Batch]) -> ExactCurvature:
        return ExactCurvature(model, loss_fn=loss_fn, batches=_Chunks(parts, size=chunk))

    curvature = curvature_of(micro_batches)
    loss = curvature.loss()
    if not isfinite(loss):
        raise UserError(f"{checkpoint}: its training loss is {loss}, which has no flatness")
    rho = config.objective.rho if request.rho is None else request.rho
    if not rho:
        raise UserError(f"{folder}: the run's objective.rho is 0; --rho R gives a distance")
    return RunFlatness(
        step=read_progress(checkpoint)["step"],
        num_samples=micro_batches.num_samples,
        num_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        loss=loss,
        eigenpairs=largest_eigenvalues(
            curvature,
            num_eigenvalues=request.num_eigenvalues,
            tolerance=TOLERANCE,
            max_iterations=request.max_iterations,
            seed=config.run.seed,
        ),
        trace=None
        if request.num_probes is None
        else estimate_trace(curvature, num_probes=request.num_probes, seed=config.run.seed),
        rho=rho,
        rho_sharpness=rho_sharpness(curvature, rho=rho),
        m_sharpness=m_sharpness(
            (
                curvature_of([part])
                for part in micro_batches
                if num_samples(part) == micro_batches.size
            ),
            rho=rho,
        ),
        micro_batch_size=micro_batches.size,
        num_micro_batches=micro_batches.num_samples // micro_batches.size,
    )


def _checkpoint_of(folder: Path) -> Path:
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run here (no config.yaml); a folder such as runs/NAME works")
    return find_checkpoint(folder / "checkpoints")


def _open(folder: Path, checkpoint: Path) -> PreparedRun:
    # The folder may lie elsewhere than where the run was trained.
    place = folder.resolve()
    return prepare_run(
        folder / "config.yaml",
        overrides=(
            *_ONE_PROCESS,
            f"run.dir={json.dumps(str(place.parent))}",
            f"run.name={json.dumps(place.name)}",
            f"checkpoint.resume={json.dumps(str(checkpoint.resolve()))}",
        ),
        world_size=1,
    )


def _load_weights(model: nn.Module, checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: does not fit the run's model: {first}") from error


class _MicroBatches:
    """Training samples in a random order, B/m at a time, the last ones possibly fewer.

    The order is that of the run's first epoch under `data.order: global`. Batches are kept in
    memory where all of them fit into `data.memory_limit`.

    Attributes:
        size: of a micro-batch.
        num_samples: of all.
    """

    def __init__(self, loader: DataLoader[Any], *, size: int, num_samples: int, fits: bool) -> None:
        self.size, self.num_samples = size, num_samples
        self._loader, self._fits = loader, fits
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if not self._fits:
            return iter(self._loader)
        if self._kept is None:
            self._kept = list(self._loader)
        return iter(self._kept)


def _micro_batches(prepared: PreparedRun, request: Request) -> _MicroBatches:
    config, data, index = prepared.config, prepared.data, prepared.data.train.index
    total = request.num_samples or index.num_samples
    if total > index.num_samples:
        raise UserError(f"--samples {total} is more than the {index.num_samples} that there are")
    count = request.micro_batches or config.objective.micro_batches or 1
    if config.batch.size % count:
        raise UserError(f"--micro-batches {count} does not divide the batch of {config.batch.size}")
    size = min(config.batch.size // count, total)
    order = GlobalOrder.for_index(index, seed=config.run.seed)
    keys = [(0, sample) for sample in order.sample_ids(0, start=0, stop=total).tolist()]
    dataset = IndexedDataset(
        index,
        seed=config.run.seed,
        transform=_Prepared(data.transform),
        source=data.train.source,
    )
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=[keys[start : start + size] for start in range(0, total, size)],
        num_workers=config.data.workers,
    )
    fits = total * prod(data.image_shape) <= config.data.memory_limit
    return _MicroBatches(loader, size=size, num_samples=total, fits=fits)


@dataclass(frozen=True)
class _Prepared:
    """The transform of evaluation, as `IndexedDataset` calls it."""

    transform: TransformPreset

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        return self.transform.prepare(image)


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
