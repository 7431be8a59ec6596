"""Checks of how the mini-batch is laid out on a number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipelines.errors import UserError
from msam_scale.batch_plan import BatchPlan, divisors
from msam_scale.config.check_registry import Check, check
from msam_scale.config.describe import listed
from msam_scale.config.problems import Problem


def plan_checks(*, world_size: int) -> list[Check]:
    """The checks for one number of ranks.

    What one rank cannot do no number of ranks can, because more of them only cut the mini-batch
    into more pieces: the checks for one rank hold for every layout.

    Args:
        world_size: W, ranks; at least 1.
    """
    checks: list[Check] = []

    @check(
        checks,
        algorithm="objective.algorithm",
        micro_batches="objective.micro_batches",
        batch_size="batch.size",
    )
    def batch_can_be_cut(
        *, algorithm: str, micro_batches: int | None, batch_size: int
    ) -> Iterator[Problem]:
        count = micro_batch_count(algorithm=algorithm, micro_batches=micro_batches)
        if count is None:
            return
        try:
            BatchPlan(batch_size, count, world_size)
        except UserError as error:
            keys = ["batch.size"]
            if micro_batches is not None:
                keys.insert(0, "objective.micro_batches")
            given = f"batch.size: {batch_size}, objective.micro_batches: {count}"
            yield Problem(keys[0], f"{error} ({given})", related=tuple(keys[1:]))

    @check(
        checks,
        algorithm="objective.algorithm",
        micro_batches="objective.micro_batches",
        batch_size="batch.size",
        norm_samples="batch.norm_samples",
    )
    def slice_holds_whole_ghost_batches(
        *, algorithm: str, micro_batches: int | None, batch_size: int, norm_samples: int | None
    ) -> Iterator[Problem]:
        count = micro_batch_count(algorithm=algorithm, micro_batches=micro_batches)
        if count is None or norm_samples is None:
            return
        try:
            slice_size = BatchPlan(batch_size, count, world_size).slice_size
        except UserError:
            return  # the check above tells
        if slice_size % norm_samples:
            nearest = sorted(
                sorted(divisors(slice_size), key=lambda size: abs(size - norm_samples))[:3]
            )
            ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
            yield Problem(
                "batch.norm_samples",
                f"{norm_samples} does not divide the {slice_size} samples of a micro-batch that "
                f"a rank works on (batch.size {batch_size}, {ranks}); "
                f"{listed([str(size) for size in nearest], last='or')} works",
            )

    return checks


def micro_batch_count(*, algorithm: str, micro_batches: int | None) -> int | None:
    """The m that an objective means; `None` when it is missing."""
    return micro_batches if algorithm == "msam" else micro_batches or 1
