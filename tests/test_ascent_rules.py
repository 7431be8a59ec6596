"""Ascent rules by name, on every layout against the reference."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from engine_models import build_model, mini_batch
from engine_runs import Run, outcome_of, relative_difference, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from reference import Reference, reference_run

_MODEL = "odd, all of it used"


@cache
def _reference(*, normalizes: bool) -> Reference:
    return reference_run(
        build_model(_MODEL).double(),
        mini_batch=mini_batch,
        steps=4,
        micro_batches=4,
        rho=0.3,
        build_optimizer=lambda parameters: torch.optim.SGD(
            parameters, lr=0.05, momentum=0.9, weight_decay=0.01
        ),
        seed=7,
        normalizes=normalizes,
    )


@pytest.mark.parametrize("row", LAYOUTS)
def test_the_unnormalized_ascent_is_rho_times_the_gradient(row: str, on_ranks: OnRanks) -> None:
    layout = LAYOUTS[row]
    config = settings(micro_batches=4, rho=0.3, precision=layout.precision, **layout.sharding)
    config["objective"]["ascent"] = "unnormalized"
    expected, normalized = _reference(normalizes=False), _reference(normalizes=True)
    outcome = on_ranks(layout.sizes[-1], outcome_of, Run(config, model=_MODEL, steps=4))[0]
    bound = 1e-12 if layout.precision == "float64" else 1e-4
    error = relative_difference(outcome.state, expected=expected.state, start=expected.start)
    assert error < bound
    other = relative_difference(normalized.state, expected=expected.state, start=expected.start)
    assert other > 10 * bound, "the rules would not be told apart"
    assert outcome.ascent_norms == pytest.approx(expected.ascent_norms, rel=1e-5)
