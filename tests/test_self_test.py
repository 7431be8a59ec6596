"""The start-up self-test: what it finds in a sound backend, what it leaves, and what it says."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from engine_runs import Run, engine_for, settings
from faults import replaced
from layouts import LAYOUTS
from rank_pool import OnRanks

from msam_scale import self_test
from msam_scale.config import Config
from msam_scale.ranks import join

# A stricter bound stops a sound backend, so this one is not met by standing still.
_STRICTER = 1e-18


def _looked_at(config: dict[str, Any]) -> tuple[list[float], str]:
    """The errors of a self-test that is asked for twice, and what a stricter one says."""
    errors: list[float] = []
    measured, bounds = self_test._error_of_update, dict(self_test._BOUNDS)

    def noted(*arguments: Any, **named: Any) -> float:
        errors.append(measured(*arguments, **named))
        return errors[-1]

    checked, ranks = Config.model_validate(config), join()
    random_states = torch.get_rng_state(), random.getstate()
    self_test._error_of_update = noted
    self_test._check.cache_clear()
    try:
        for _ in range(2):
            self_test.check_sharding(checked, ranks=ranks)
        assert torch.get_rng_state().equal(random_states[0]), "the user's numbers are changed"
        assert random.getstate() == random_states[1]
        self_test._check.cache_clear()
        self_test._BOUNDS.update(dict.fromkeys(bounds, _STRICTER))
        with pytest.raises(RuntimeError) as caught:
            engine_for(Run(config))
    finally:
        self_test._error_of_update = measured
        self_test._BOUNDS.update(bounds)
        self_test._check.cache_clear()
    return errors, str(caught.value)


@pytest.mark.parametrize(
    ("row", "precision"),
    [("replicated", "float64"), ("FSDP", "bfloat16"), ("ZeRO-1", "float16"), ("ZeRO-3", "float32")],
)
def test_it_is_met_by_far_once_a_process_and_names_the_versions(
    row: str, precision: str, on_ranks: OnRanks
) -> None:
    config = settings(micro_batches=4, precision=precision, **LAYOUTS[row].sharding)
    for errors, message in on_ranks(2, _looked_at, config):
        assert len(errors) == 2, "once where it is met, and once where it is not"
        assert errors[0] < self_test._BOUNDS[precision] / 2
        strategy = LAYOUTS[row].sharding["strategy"]
        assert f"sharding.strategy: {strategy} in {precision}" in message
        assert f"with torch {torch.__version__}" in message
        at_hand, _, verified = message.partition(": the update")
        assert ("and deepspeed" in at_hand) == ("ZeRO" in row)
        assert "and deepspeed 0.19.8" in verified


def test_an_update_that_is_not_a_number_is_not_taken_for_right() -> None:
    self_test._check.cache_clear()
    try:
        with (
            replaced(self_test, "_error_of_update", lambda *_, **__: float("nan")),
            pytest.raises(RuntimeError, match="off by nan"),
        ):
            engine_for(Run(settings(micro_batches=4)))
    finally:
        self_test._check.cache_clear()
