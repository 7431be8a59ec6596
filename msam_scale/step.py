"""One optimizer step of vanilla training, SAM or mSAM: equation (6) on any sharding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from msam_scale.ascent import AscentRule
from msam_scale.batch_plan import BatchPlan
from msam_scale.micro_batch import MicroBatch
from msam_scale.passes import Passes
from msam_scale.sharding.interface import Sharding
from msam_scale.step_summary import StepResult, StepSummary


@dataclass(frozen=True)
class Objective:
    """What a step minimises: the plain loss (no `ascent`), or the loss at w + ε⁽ʲ⁾.

    `radius` gives the ρ of a micro-batch by its number j.
    """

    ascent: AscentRule | None
    radius: Callable[[int], float]


def run_step(
    micro_batches: Iterable[MicroBatch],
    *,
    objective: Objective,
    plan: BatchPlan,
    sharding: Sharding,
    passes: Passes,
    summary: StepSummary,
    clip_norm: float | None,
    measure_fidelity: bool = False,
) -> StepResult:
    """Adds up the (perturbed) gradients of this rank's micro-batches, reduces and applies them."""
    sharding.begin_step()
    summary.begin_step(plan)
    for micro_batch in micro_batches:
        if objective.ascent is None:
            with sharding.descent_pass(last=micro_batch.is_last):
                passes.run(micro_batch, divisor=plan.batch_size, at_weights=True)
            continue
        with sharding.ascent_pass():
            passes.run(micro_batch, divisor=plan.micro_batch_size, at_weights=True)
        if (scale := summary.ascent_scale()) is not None:
            sharding.ascent_gradient.flat.mul_(scale.to(sharding.ascent_gradient.flat.device))
        norm = objective.ascent(
            sharding.ascent_gradient,
            sharding.weights(),
            rho=objective.radius(micro_batch.number),
            square_sum=sharding.square_sum,
        )
        summary.add_ascent_norm(norm)
        if measure_fidelity:
            summary.add_perturbation(
                gradient_norm=norm,
                length=sharding.square_sum(sharding.ascent_gradient.flat).sqrt(),
                fidelity=sharding.perturbation_fidelity(),
            )
        with sharding.perturbed(), sharding.descent_pass(last=micro_batch.is_last):
            passes.run(micro_batch, divisor=plan.batch_size, at_weights=False)
    summary.reduce()
    scale, gradient_norm = summary.gradient_scale(), sharding.gradient_norm()
    if scale is not None:
        gradient_norm = gradient_norm * scale
    result = summary.finish_step(gradient_norm)
    if clip_norm is not None:
        # The small constant is torch.nn.utils.clip_grad_norm_'s, whose meaning this keeps.
        clipping = (clip_norm / (gradient_norm + 1e-6)).clamp(max=1.0)
        scale = clipping if scale is None else scale * clipping
    if scale is not None:
        sharding.scale_gradient(scale)
    sharding.apply(result.skip)
    return result
