"""The start-up self-test: what it finds in a sound backend, and what it costs."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch
from engine_runs import Run, engine_for, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from report import add_row

from msam_scale import self_test
from msam_scale.config import Config
from msam_scale.ranks import join

_TITLE = "Self-test: relative error of the update, its bound, and milliseconds, on a warm process"
_PRECISIONS = ("float64", "float32", "bfloat16", "float16")


def _error_and_seconds(config: dict[str, Any]) -> tuple[float, float, bool]:
    """Of a self-test in a process that has made the backend once; and whether it runs only once."""
    errors: list[float] = []
    measured = self_test._error_of_update

    def noted(*arguments: Any, **named: Any) -> float:
        errors.append(measured(*arguments, **named))
        return errors[-1]

    checked, ranks = Config.model_validate(config), join()
    random_states = torch.get_rng_state(), random.getstate()
    self_test._error_of_update = noted
    try:
        for _ in range(2):
            self_test._check.cache_clear()
            start = time.perf_counter()
            self_test.check_sharding(checked, ranks=ranks)
            seconds = time.perf_counter() - start
        self_test.check_sharding(checked, ranks=ranks)
    finally:
        self_test._error_of_update = measured
    assert torch.get_rng_state().equal(random_states[0]), "the user's random numbers are changed"
    assert random.getstate() == random_states[1]
    return errors[-1], seconds, len(errors) == 2


@pytest.mark.parametrize("row", LAYOUTS)
def test_sound_backends_are_far_below_the_bound(row: str, on_ranks: OnRanks) -> None:
    if row == "replicated":
        add_row(_TITLE, "", *_PRECISIONS)
    layout, cells = LAYOUTS[row], []
    for precision in _PRECISIONS:
        if precision == "float64" and layout.precision != "float64":
            cells.append("DeepSpeed has none")
            continue
        if precision == "float16" and layout.same_modules:
            cells.append("not on a CPU")
            continue
        config = settings(micro_batches=4, precision=precision, **layout.sharding)
        size = 4 if "2x2" in row else 2
        by_rank = on_ranks(size, _error_and_seconds, config)
        error, seconds, once = by_rank[0]
        bound = self_test._BOUNDS[precision]
        cells.append(f"{error:.0e} < {bound:.0e}, {1000 * seconds:.0f} ms")
        assert all(other[0] == error for other in by_rank)
        assert error < bound / 2
        assert once
    add_row(_TITLE, row, *cells)


def _stops_or_starts(config: dict[str, Any]) -> str:
    self_test._check.cache_clear()
    bounds = dict(self_test._BOUNDS)
    self_test._BOUNDS.update(dict.fromkeys(bounds, 1e-18))
    try:
        engine_for(Run(config))
    except RuntimeError as error:
        return str(error)
    finally:
        self_test._BOUNDS.update(bounds)
        self_test._check.cache_clear()
    return "started"


@pytest.mark.parametrize("row", LAYOUTS)
def test_initialize_runs_it_and_names_the_versions(row: str, on_ranks: OnRanks) -> None:
    layout = LAYOUTS[row]
    config = settings(micro_batches=4, precision="float32", **layout.sharding)
    for message in on_ranks(4 if "2x2" in row else 2, _stops_or_starts, config):
        assert f"sharding.strategy: {config['sharding']['strategy']} in float32" in message
        assert f"with torch {torch.__version__}" in message
        assert ("and deepspeed" in message.partition(":")[0] + message.partition("off by")[0]) == (
            "ZeRO" in row
        )
