"""Hybrid training: which algorithm a step follows (Figure B.1 of the paper)."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from math import ceil

from data_pipelines.errors import UserError
from msam_scale.batch_plan import BatchPlan
from msam_scale.config import Config
from msam_scale.config.plan_checks import micro_batch_count, shard_group_size


class Phases:
    """The algorithm and the batch plan of every step, a pure function of the step.

    A phase ends with the first step whose number is not below `until` times the number of all
    steps; after the last phase `objective.algorithm` goes on. Optimizer and schedule know nothing
    of it.

    Args:
        config: with its `objective`.
        world_size: W, ranks.
        num_steps: optimizer steps of the whole run; not needed without phases.

    Attributes:
        num_steps: as given.

    Raises:
        UserError: there are phases and `num_steps` is not known, or the mini-batch cannot be cut
            up as one of them needs.
    """

    def __init__(self, config: Config, *, world_size: int, num_steps: int | None) -> None:
        objective = config.objective
        if objective.phases and num_steps is None:
            raise UserError(
                "objective.phases: are fractions of all steps, whose number is not known; give "
                "training.steps, or num_steps to initialize"
            )
        self.num_steps = num_steps
        self._last = objective.algorithm
        self._ends = [
            # Rounded first: 0.07 * 100 is a little more than 7.
            (ceil(round(phase.until * (num_steps or 0), 6)), phase.algorithm)
            for phase in objective.phases
        ]
        self._plans = batch_plans(config, world_size=world_size)

    def algorithm(self, step: int) -> str:
        """`vanilla`, `sam` or `msam`, for a step counted from 0."""
        return next((name for end, name in self._ends if step < end), self._last)

    def plan(self, step: int) -> BatchPlan:
        """The layout of the mini-batch of a step; that of SAM has one micro-batch."""
        return self._plans[self.algorithm(step)]

    @property
    def plans(self) -> Collection[BatchPlan]:
        """Those of all steps, each once."""
        return self._plans.values()

    def stretches(self, first_step: int, num_steps: int) -> list[range]:
        """The steps `first_step … num_steps - 1`, cut where the algorithm may change."""
        cuts = [end for end, _ in self._ends if first_step < end < num_steps]
        edges = [first_step, *sorted(set(cuts)), num_steps]
        return [range(start, end) for start, end in pairwise(edges)]


def batch_plans(config: Config, *, world_size: int) -> dict[str, BatchPlan]:
    """The layouts of the mini-batch that occur in a run, by algorithm.

    Raises:
        UserError: the mini-batch cannot be cut up so.
    """
    return {
        algorithm: batch_plan(config, world_size=world_size, algorithm=algorithm)
        for algorithm in config.objective.algorithms
    }


def norm_samples(config: Config) -> int:
    """Samples that batch normalization normalises together, the same in all phases."""
    return config.batch.norm_samples or config.batch.size // (config.objective.micro_batches or 1)


def batch_plan(config: Config, *, world_size: int, algorithm: str | None = None) -> BatchPlan:
    """The layout of the config's mini-batch on so many ranks.

    Args:
        config: the settings.
        world_size: W, ranks.
        algorithm: of a phase; by default `objective.algorithm`.

    Raises:
        UserError: the mini-batch cannot be cut up so.
    """
    objective = config.objective
    count = micro_batch_count(
        algorithm=algorithm or objective.algorithm, micro_batches=objective.micro_batches
    )
    return BatchPlan(
        batch_size=config.batch.size,
        micro_batches=count or 1,
        world_size=world_size,
        shard_group_size=shard_group_size(
            config.sharding.strategy,
            shard_group=config.sharding.shard_group,
            world_size=world_size,
        ),
    )
