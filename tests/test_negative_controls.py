"""An engine that is broken on purpose is found out, so the agreement with the reference counts."""

from __future__ import annotations

import pytest
import torch
from engine_models import build_model, mini_batch
from engine_runs import Run, relative_difference, settings, with_small_buckets
from faults import FAULTS, outcome_without
from rank_pool import OnRanks
from reference import Reference, reference_run

STEPS = 4
# The run in which each fault has to show: model, m on 2 ranks, and samples normalised together.
SHOWN_BY = {
    "restoring the weights": ("odd", 4, None),
    "the sum over the perturbation group": ("odd", 1, None),
    "the mean over micro-batches": ("odd", 4, None),
    "the same masks in both passes": ("dropout_vit", 4, None),
    "statistics of the ascent only": ("wide_resnet", 4, 4),
    "the norm over all parameters": ("odd", 4, None),
    "the sum of every bucket": ("odd", 4, None),
}


def _reference(model: str, micro_batches: int, norm_samples: int | None) -> Reference:
    return reference_run(
        build_model(model).double(),
        mini_batch=mini_batch,
        steps=STEPS,
        micro_batches=micro_batches,
        rho=0.1,
        build_optimizer=lambda parameters: torch.optim.SGD(
            parameters, lr=0.05, momentum=0.9, weight_decay=0.01
        ),
        norm_samples=norm_samples,
        seed=7,
    )


def test_every_fault_is_tried() -> None:
    assert SHOWN_BY.keys() | {"nothing"} == FAULTS.keys()


@pytest.mark.parametrize("fault", SHOWN_BY)
def test_a_broken_engine_is_found_out(fault: str, on_ranks: OnRanks) -> None:
    model, micro_batches, norm_samples = SHOWN_BY[fault]
    reference = _reference(model, micro_batches, norm_samples)
    config = settings(micro_batches=micro_batches, norm_samples=norm_samples)
    run = Run(config, model=model, steps=STEPS)

    def error(left_out: str) -> float:
        outcome = on_ranks(2, with_small_buckets, outcome_without, left_out, run)[0]
        only = "running" if left_out == "statistics of the ascent only" else ""
        return relative_difference(
            outcome.state,
            expected=reference.state,
            start=reference.start,
            among=lambda name: only in name,
        )

    assert error("nothing") < 1e-9
    assert not error(fault) < 1e-3  # may be NaN
