"""The rules between the settings of the objective: algorithm, phases, numbers that go wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from msam_scale.config.check_registry import Check, check
from msam_scale.config.describe import shown
from msam_scale.config.keys import default_of
from msam_scale.config.problems import Problem

OBJECTIVE_CHECKS: list[Check] = []


@check(
    OBJECTIVE_CHECKS,
    algorithm="objective.algorithm",
    micro_batches="objective.micro_batches",
    phases="objective.phases",
)
def _micro_batches_fit_the_algorithm(
    *, algorithm: str, micro_batches: int | None, phases: list[Mapping[str, Any]]
) -> Iterator[Problem]:
    key = "objective.micro_batches"
    in_phases = {phase["algorithm"] for phase in phases}
    if "msam" in (algorithm, *in_phases) and micro_batches is None:
        where = "objective.algorithm" if algorithm == "msam" else "a phase"
        yield Problem(
            key,
            f"is missing, and {where}: msam needs it: the paper's m, the number of "
            "parts of the mini-batch that are perturbed on their own; "
            "a whole number that divides batch.size works (1 is SAM)",
        )
    if algorithm == "sam" and "msam" not in in_phases and micro_batches not in (None, 1):
        yield Problem(
            key,
            f"{micro_batches} contradicts objective.algorithm: sam, which is msam with one "
            "micro-batch; leave it out, or set objective.algorithm: msam",
            idle_beside="objective.algorithm",
        )


@check(OBJECTIVE_CHECKS, phases="objective.phases")
def _phases_follow_each_other(*, phases: list[Mapping[str, Any]]) -> Iterator[Problem]:
    ends = [0.0, *(phase["until"] for phase in phases)]
    for index, (before, end) in enumerate(pairwise(ends)):
        if end <= before:
            yield Problem(
                f"objective.phases[{index}].until",
                f"{end} is not after the end of the phase before ({before}); fractions of all "
                "steps that grow work",
            )


@check(
    OBJECTIVE_CHECKS,
    algorithm="objective.algorithm",
    phases="objective.phases",
    rho="objective.rho",
    ascent="objective.ascent",
)
def _something_ascends(
    *, algorithm: str, phases: list[Mapping[str, Any]], rho: float | list[float], ascent: str
) -> Iterator[Problem]:
    if {algorithm, *(phase["algorithm"] for phase in phases)} != {"vanilla"}:
        return
    for key, value in (("objective.rho", rho), ("objective.ascent", ascent)):
        if value != default_of(key):
            yield Problem(
                key,
                f"{shown(value)} has no effect with objective.algorithm: vanilla; leave it out",
                idle_beside="objective.algorithm",
            )


@check(
    OBJECTIVE_CHECKS,
    rho="objective.rho",
    algorithm="objective.algorithm",
    phases="objective.phases",
    micro_batches="objective.micro_batches",
)
def _each_micro_batch_has_a_radius(
    *,
    rho: float | list[float],
    algorithm: str,
    phases: list[Mapping[str, Any]],
    micro_batches: int | None,
) -> Iterator[Problem]:
    if not isinstance(rho, list):
        return
    if "sam" in {algorithm, *(phase["algorithm"] for phase in phases)}:
        yield Problem(
            "objective.rho",
            f"{shown(rho)} has a radius for each micro-batch, and sam has one micro-batch; a "
            "number works",
        )
    elif micro_batches is not None and len(rho) != micro_batches:
        yield Problem(
            "objective.rho",
            f"{shown(rho)} has {len(rho)} radii for objective.micro_batches: {micro_batches}; "
            f"a number, or a list of {micro_batches}, works",
        )


@check(OBJECTIVE_CHECKS, non_finite="objective.non_finite", precision="precision")
def _float16_has_to_overflow_now_and_then(*, non_finite: str, precision: str) -> Iterator[Problem]:
    if non_finite != "skip" and precision == "float16":
        yield Problem(
            "objective.non_finite",
            f"{non_finite} does not work with precision: float16, whose loss scale is found by "
            "steps that overflow and are left out; skip works, or precision: bfloat16",
            related=("precision",),
        )


@check(OBJECTIVE_CHECKS, non_finite="objective.non_finite", every="checkpoint.every")
def _a_rollback_has_somewhere_to_go(*, non_finite: str, every: int | None) -> Iterator[Problem]:
    if non_finite == "rollback" and every is None:
        yield Problem(
            "checkpoint.every",
            "is missing, and objective.non_finite: rollback needs it: it goes back to the last "
            "checkpoint; a number of optimizer steps works",
        )
