"""Ascent rules by name, on every layout against the reference."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from engine_models import build_model, mini_batch
from engine_runs import Run, outcome_of, relative_difference, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from reference import Reference, reference_run

from msam_scale.config import ConfigError, load_config

_MODEL = "odd, all of it used"


_RADII = (0.3, 0.0, 0.05, 0.7)


@cache
def _reference(*, normalizes: bool, rho: float | tuple[float, ...] = 0.3) -> Reference:
    return reference_run(
        build_model(_MODEL).double(),
        mini_batch=mini_batch,
        steps=4,
        micro_batches=4,
        rho=rho,
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


@pytest.mark.parametrize("row", LAYOUTS)
def test_each_micro_batch_may_have_a_radius_of_its_own(row: str, on_ranks: OnRanks) -> None:
    layout = LAYOUTS[row]
    config = settings(micro_batches=4, precision=layout.precision, **layout.sharding)
    config["objective"]["rho"] = list(_RADII)
    expected = _reference(normalizes=True, rho=_RADII)
    turned = _reference(normalizes=True, rho=_RADII[1:] + _RADII[:1])
    outcome = on_ranks(layout.sizes[-1], outcome_of, Run(config, model=_MODEL, steps=4))[0]
    bound = 1e-12 if layout.precision == "float64" else 1e-4
    error = relative_difference(outcome.state, expected=expected.state, start=expected.start)
    assert error < bound
    other = relative_difference(turned.state, expected=expected.state, start=expected.start)
    assert other > 10 * bound, "radii in another order would not be told apart"


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"micro_batches": 4, "rho": [0.1, 0.2]}, "has 2 radii for objective.micro_batches: 4"),
        ({"algorithm": "sam", "rho": [0.1]}, "sam has one micro-batch"),
        (
            {
                "micro_batches": 2,
                "rho": [0.1, 0.2],
                "phases": [{"until": 0.5, "algorithm": "sam"}],
            },
            "sam has one micro-batch",
        ),
        ({"algorithm": "vanilla", "rho": [0.1]}, "no effect with objective.algorithm: vanilla"),
        ({"micro_batches": 2, "rho": [0.1, -1]}, "objective.rho"),
    ],
)
def test_radii_that_do_not_fit_are_refused(objective: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"batch": {"size": 8}, "objective": objective})
    assert words in str(caught.value)
    assert "objective.rho" in str(caught.value)
