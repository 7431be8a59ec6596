"""The flatness of a run: its newest checkpoint, on its training data, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from data_pipelines.errors import UserError
from msam_scale.batch_tree import num_samples
from msam_scale.config import Config
from msam_scale.flatness.lanczos import Eigenpairs, largest_eigenvalues
from msam_scale.flatness.measures import TOLERANCE
from msam_scale.flatness.opened_run import open_run
from msam_scale.flatness.sharpness import m_sharpness, rho_sharpness
from msam_scale.flatness.trace import TraceEstimate, estimate_trace


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


def measure_run(folder: Path, request: Request, *, allow_code: bool = False) -> RunFlatness:
    """Measures the flatness of a run at its newest checkpoint; writes nothing.

    Args:
        folder: of the run.
        request: what to measure.
        allow_code: whether code and commands that the run's config names may run.

    Raises:
        UserError: no run or checkpoint there, its data are gone or changed, its loss is not finite,
            or more samples or micro-batches are asked for than there are.
    """
    opened = open_run(folder, command="sharpness", allow_code=allow_code)
    config = opened.config
    size = _micro_batch_size(config, request)
    samples = opened.samples(num_samples=request.num_samples, batch_size=size)
    size = samples.batch_size
    curvature = opened.curvature(samples, at_once=size)
    loss = curvature.loss()
    if not isfinite(loss):
        raise UserError(f"{opened.checkpoint}: its training loss is {loss}, which has no flatness")
    rho = config.objective.rho if request.rho is None else request.rho
    if not isinstance(rho, float):
        raise UserError(f"{folder}: the run's objective.rho is a list; --rho R gives one distance")
    if not rho:
        raise UserError(f"{folder}: the run's objective.rho is 0; --rho R gives a distance")
    return RunFlatness(
        step=opened.step,
        num_samples=samples.num_samples,
        num_parameters=sum(p.numel() for p in opened.model.parameters() if p.requires_grad),
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
                opened.curvature([part], at_once=size)
                for part in samples
                if num_samples(part) == size
            ),
            rho=rho,
        ),
        micro_batch_size=size,
        num_micro_batches=samples.num_samples // size,
    )


def _micro_batch_size(config: Config, request: Request) -> int:
    count = request.micro_batches or config.objective.micro_batches or 1
    if config.batch.size % count:
        raise UserError(f"--micro-batches {count} does not divide the batch of {config.batch.size}")
    return config.batch.size // count
