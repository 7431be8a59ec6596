"""Ways to break the engine, each of which the comparison with the reference has to notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from engine_runs import Outcome, Run, outcome_of

from msam_scale.layers.pass_context import PassContext
from msam_scale.passes import Passes
from msam_scale.sharding.gradient_reduction import GradientReduction
from msam_scale.sharding.replicated import ReplicatedSharding


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, an attribute of a class or module is another."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _nothing() -> AbstractContextManager[None]:
    return replaced(Passes, "run", Passes.run)


def _restoring() -> AbstractContextManager[None]:
    @contextmanager
    def perturbed(sharding: ReplicatedSharding) -> Iterator[None]:
        torch._foreach_add_(sharding.weights(), sharding.ascent_gradient.views)
        yield

    return replaced(ReplicatedSharding, "perturbed", perturbed)


def _sum_over_the_perturbation_group() -> AbstractContextManager[None]:
    @contextmanager
    def ascent_pass(sharding: ReplicatedSharding) -> Iterator[None]:
        sharding.ascent_gradient.flat.zero_()
        gradients = sharding._ascent_gradients
        with sharding._gradients_in(sharding.ascent_gradient, gradients, group=None):
            yield

    return replaced(ReplicatedSharding, "ascent_pass", ascent_pass)


def _mean_over_micro_batches() -> AbstractContextManager[None]:
    run = Passes.run

    def undivided(passes: Passes, micro_batch: Any, *, divisor: int, at_weights: bool) -> None:
        run(passes, micro_batch, divisor=divisor if at_weights else 8, at_weights=at_weights)

    return replaced(Passes, "run", undivided)


def _same_masks_in_both_passes() -> AbstractContextManager[None]:
    sample_uniform = PassContext.sample_uniform

    def fresh(context: PassContext, layer: int, call: int, numbers: int) -> torch.Tensor:
        shift = 0 if context.records_statistics else 100
        return sample_uniform(context, layer + shift, call, numbers)

    return replaced(PassContext, "sample_uniform", fresh)


def _statistics_of_the_ascent_only() -> AbstractContextManager[None]:
    chunk = PassContext.chunk

    def recording(
        context: PassContext, positions: range, *, records_statistics: bool
    ) -> AbstractContextManager[None]:
        return chunk(context, positions, records_statistics=True)

    return replaced(PassContext, "chunk", recording)


def _norm_over_all_parameters() -> AbstractContextManager[None]:
    def of_one(sharding: ReplicatedSharding, flat: torch.Tensor) -> torch.Tensor:
        return sharding.ascent_gradient.views[0].double().square().sum()

    return replaced(ReplicatedSharding, "square_sum", of_one)


def _every_bucket() -> AbstractContextManager[None]:
    start = GradientReduction.start

    def short(reduction: GradientReduction, buffer: Any, group: Any) -> None:
        first = reduction._ranges[0][0]
        reduction._ranges[0] = first, first + 1
        start(reduction, buffer, group)

    return replaced(GradientReduction, "start", short)


# What is left out, under the name of what the fault leaves out.
FAULTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "nothing": _nothing,
    "restoring the weights": _restoring,
    "the sum over the perturbation group": _sum_over_the_perturbation_group,
    "the mean over micro-batches": _mean_over_micro_batches,
    "the same masks in both passes": _same_masks_in_both_passes,
    "statistics of the ascent only": _statistics_of_the_ascent_only,
    "the norm over all parameters": _norm_over_all_parameters,
    "the sum of every bucket": _every_bucket,
}


def outcome_without(fault: str, run: Run) -> Outcome:
    """Trains on this rank with an engine that lacks the named thing."""
    with FAULTS[fault]():
        return outcome_of(run)
