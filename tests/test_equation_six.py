"""The engine follows equation (6), whatever the layout: ranks, micro-batches, chunks, optimizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_models import build_model
from engine_runs import ADAMW, SGD, Outcome, Run, outcomes_of, relative_difference, settings
from rank_pool import OnRanks
from reference import Reference
from references import reference_for

MICRO_BATCHES = (1, 2, 4, 8, 16)
SIZES = (1, 2, 4)


def _check(outcome: Outcome, reference: Reference, *, bound: float = 1e-9) -> None:
    error = relative_difference(outcome.state, expected=reference.state, start=reference.start)
    assert error < bound
    for reported, expected in (
        (outcome.losses, reference.losses),
        (outcome.gradient_norms, reference.gradient_norms),
        (outcome.ascent_norms, reference.ascent_norms),
    ):
        torch.testing.assert_close(reported, expected, rtol=1e-8, atol=0)


def _check_all(size: int, on_ranks: OnRanks, runs: list[tuple[Run, Reference]]) -> None:
    by_rank = on_ranks(size, outcomes_of, [run for run, _ in runs])
    for outcomes in by_rank:
        for outcome, (_, reference) in zip(outcomes, runs, strict=True):
            _check(outcome, reference)
    for name, tensor in by_rank[0][0].state.items():
        assert all(torch.equal(tensor, other[0].state[name]) for other in by_rank)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunk", [None, 3], ids=["whole", "chunks of 3"])
def test_sgd_follows_the_reference_for(size: int, chunk: int | None, on_ranks: OnRanks) -> None:
    runs = [
        (Run(settings(micro_batches=m, chunk=chunk)), reference_for("odd", m))
        for m in MICRO_BATCHES
    ]
    _check_all(size, on_ranks, runs)


@pytest.mark.parametrize("size", SIZES)
def test_adamw_and_clipping_follow_the_reference_for(size: int, on_ranks: OnRanks) -> None:
    kinds: list[dict[str, Any]] = [
        {"optimizer": "sgd", "clip_norm": 0.3},
        {"optimizer": "adamw", "clip_norm": None},
        {"optimizer": "adamw", "clip_norm": 0.3},
    ]
    runs = []
    for kind in kinds:
        for m in MICRO_BATCHES:
            optimizer = SGD if kind["optimizer"] == "sgd" else ADAMW
            config = settings(
                micro_batches=m, chunk=5, optimizer=optimizer, clip_norm=kind["clip_norm"]
            )
            reference = reference_for("odd", m, **kind)
            # Else clipping would go untested.
            assert max(reference.gradient_norms) > 0.6
            runs.append((Run(config), reference))
    _check_all(size, on_ranks, runs)


@pytest.mark.parametrize("size", SIZES)
def test_vanilla_and_sam_follow_the_reference_for(size: int, on_ranks: OnRanks) -> None:
    runs = [
        (Run(settings(algorithm="vanilla", chunk=3)), reference_for("odd", 1, rho=None)),
        (Run(settings(algorithm="vanilla", micro_batches=4)), reference_for("odd", 4, rho=None)),
        (Run(settings(algorithm="sam", chunk=3)), reference_for("odd", 1)),
    ]
    _check_all(size, on_ranks, runs)


@pytest.mark.parametrize("size", SIZES)
def test_ghost_batch_norm_and_its_running_statistics_follow_the_reference_for(
    size: int, on_ranks: OnRanks
) -> None:
    runs = []
    for m, norm_samples, chunk in ((1, 4, None), (2, 8, 8), (4, None, None), (4, 4, 4), (8, 2, 4)):
        config = settings(micro_batches=m, norm_samples=norm_samples, chunk=chunk)
        run = Run(config, model="wide_resnet")
        runs.append((run, reference_for("wide_resnet", m, norm_samples=norm_samples)))
    by_rank = on_ranks(size, outcomes_of, [run for run, _ in runs])
    for outcomes in by_rank:
        for outcome, (_, reference) in zip(outcomes, runs, strict=True):
            _check(outcome, reference)
            running = relative_difference(
                outcome.state,
                expected=reference.state,
                start=reference.start,
                among=lambda name: "running" in name,
            )
            assert running < 1e-9
            assert outcome.state["norm.num_batches_tracked"] == 10


@pytest.mark.parametrize("size", SIZES)
def test_masks_of_dropout_and_stochastic_depth_follow_the_reference_for(
    size: int, on_ranks: OnRanks
) -> None:
    runs = []
    for m, chunk in ((1, None), (1, 3), (4, None), (4, 3), (16, 1)):
        run = Run(settings(micro_batches=m, chunk=chunk), model="dropout_vit")
        runs.append((run, reference_for("dropout_vit", m)))
    _check_all(size, on_ranks, runs)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("model", ["odd", "dropout_vit"])
def test_float32_does_not_depend_on_ranks_and_chunks(
    model: str, optimizer: dict[str, Any], on_ranks: OnRanks
) -> None:
    run = Run(settings(micro_batches=4, precision="float32", optimizer=optimizer), model=model)
    chunked = replace(
        run, config=settings(micro_batches=4, precision="float32", optimizer=optimizer, chunk=3)
    )
    start = build_model(model).state_dict()
    expected = outcomes_of([run])[0].state
    for size in SIZES:
        for outcome in on_ranks(size, outcomes_of, [run, chunked])[0]:
            assert relative_difference(outcome.state, expected=expected, start=start) < 1e-5


def test_the_reference_tells_micro_batches_apart() -> None:
    """What passes above passes for one m only."""
    one, two = reference_for("odd", 1), reference_for("odd", 2)
    assert relative_difference(one.state, expected=two.state, start=two.start) > 1e-3
