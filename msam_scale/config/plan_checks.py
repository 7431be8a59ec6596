"""Checks of how the mini-batch is laid out on a number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.errors import UserError
from msam_scale.batch_plan import BatchPlan, divisors
from msam_scale.config.check_registry import Check, check
from msam_scale.config.describe import listed
from msam_scale.config.problems import Problem

# The strategies whose ranks hold a part of the parameters each.
SHARDED_PARAMETERS = ("fsdp", "zero3")


def plan_checks(*, world_size: int | None) -> list[Check]:
    """The checks for one number of ranks.

    What one rank cannot do no number of ranks can, because more of them only cut the mini-batch
    into more pieces: the checks for one rank hold for every layout.

    Args:
        world_size: W, ranks, at least 1; `None`: not known, so only what holds for every number.
    """
    checks: list[Check] = []

    def planned(batch_size: int, count: int, strategy: str, shard_group: int | None) -> BatchPlan:
        if world_size is None:
            return BatchPlan(batch_size, count)
        group = shard_group_size(strategy, shard_group=shard_group, world_size=world_size)
        # A group that does not divide W is told once, by the check of it.
        return BatchPlan(batch_size, count, world_size, group if world_size % group == 0 else 1)

    @check(checks, strategy="sharding.strategy", shard_group="sharding.shard_group")
    def shard_groups_divide_the_world(
        *, strategy: str, shard_group: int | None
    ) -> Iterator[Problem]:
        if world_size is None or shard_group is None or strategy not in SHARDED_PARAMETERS:
            return
        if world_size % shard_group:
            sizes = listed([str(size) for size in divisors(world_size)], last="or")
            yield Problem(
                "sharding.shard_group",
                f"{shard_group} does not divide {_ranks(world_size)}; {sizes} works",
            )

    @check(
        checks,
        algorithm="objective.algorithm",
        micro_batches="objective.micro_batches",
        batch_size="batch.size",
        strategy="sharding.strategy",
        shard_group="sharding.shard_group",
    )
    def batch_can_be_cut(
        *,
        algorithm: str,
        micro_batches: int | None,
        batch_size: int,
        strategy: str,
        shard_group: int | None,
    ) -> Iterator[Problem]:
        count = micro_batch_count(algorithm=algorithm, micro_batches=micro_batches)
        if count is None:
            return
        try:
            planned(batch_size, count, strategy, shard_group)
        except UserError as error:
            keys = ["batch.size"]
            if micro_batches is not None:
                keys.insert(0, "objective.micro_batches")
            given = f"batch.size: {batch_size}, objective.micro_batches: {count}"
            yield Problem(keys[0], f"{error} ({given})", related=tuple(keys[1:]))

    @check(
        checks,
        phases="objective.phases",
        batch_size="batch.size",
        strategy="sharding.strategy",
        shard_group="sharding.shard_group",
    )
    def batch_can_be_cut_for_a_phase_of_sam(
        *,
        phases: list[Mapping[str, Any]],
        batch_size: int,
        strategy: str,
        shard_group: int | None,
    ) -> Iterator[Problem]:
        if not any(phase["algorithm"] == "sam" for phase in phases):
            return
        try:
            planned(batch_size, 1, strategy, shard_group)
        except UserError as error:
            yield Problem("objective.phases", f"the phase of sam: {error}", related=("batch.size",))

    @check(
        checks,
        algorithm="objective.algorithm",
        micro_batches="objective.micro_batches",
        batch_size="batch.size",
        norm_samples="batch.norm_samples",
        strategy="sharding.strategy",
        shard_group="sharding.shard_group",
    )
    def slice_holds_whole_ghost_batches(
        *,
        algorithm: str,
        micro_batches: int | None,
        batch_size: int,
        norm_samples: int | None,
        strategy: str,
        shard_group: int | None,
    ) -> Iterator[Problem]:
        count = micro_batch_count(algorithm=algorithm, micro_batches=micro_batches)
        if count is None or norm_samples is None:
            return
        try:
            slice_size = planned(batch_size, count, strategy, shard_group).slice_size
        except UserError:
            return  # the check above tells
        if slice_size % norm_samples:
            nearest = sorted(
                sorted(divisors(slice_size), key=lambda size: abs(size - norm_samples))[:3]
            )
            yield Problem(
                "batch.norm_samples",
                f"{norm_samples} does not divide the {slice_size} samples of a micro-batch that "
                f"a rank works on (batch.size {batch_size}, {_ranks(world_size or 1)}); "
                f"{listed([str(size) for size in nearest], last='or')} works",
            )

    return checks


def micro_batch_count(*, algorithm: str, micro_batches: int | None) -> int | None:
    """The m that an algorithm means; `None` when it is missing."""
    if algorithm == "sam":
        return 1
    return micro_batches if algorithm == "msam" else micro_batches or 1


def shard_group_size(strategy: str, *, shard_group: int | None, world_size: int) -> int:
    """G_s: ranks that together hold one copy of the parameters.

    Args:
        strategy: `sharding.strategy`.
        shard_group: `sharding.shard_group`.
        world_size: W, ranks.
    """
    return (shard_group or world_size) if strategy in SHARDED_PARAMETERS else 1


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"
