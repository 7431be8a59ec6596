"""DeepSpeed's own options of ZeRO-3 change what is kept gathered, and never the result."""

from __future__ import annotations

from typing import Any

import pytest
from engine_models import build_model
from engine_runs import Outcome, Run, outcome_of, relative_difference, settings
from faults import replaced
from rank_pool import OnRanks

import msam_scale.initialization as initialization

OPTIONS: dict[str, dict[str, Any]] = {
    "hpZ": {"zero_hpz_partition_size": 2},
    "nothing persistent": {"stage3_param_persistence_threshold": 0},
    "some persistent": {"stage3_param_persistence_threshold": 300},
    "all persistent": {"stage3_param_persistence_threshold": 100_000},
    "no prefetch": {"stage3_prefetch_bucket_size": 0},
    "no overlap": {"overlap_comm": False, "contiguous_gradients": False},
}


def _run(options: dict[str, Any] | None) -> Run:
    sharding: dict[str, Any] = {}
    if options is not None:
        sharding = {"strategy": "zero3", "deepspeed": {"zero_optimization": options}}
    return Run(
        settings(micro_batches=4, chunk=4, precision="float32", **sharding),
        model="dropout_vit",
        steps=3,
    )


def _without_refreshing(run: Run) -> Outcome:
    from msam_scale.sharding.zero import private_api

    no_self_test = replaced(initialization, "check_sharding", lambda *_, **__: None)
    with no_self_test, replaced(private_api, "refresh_gathered", lambda engine: None):
        return outcome_of(run)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_leave_the_trajectory(name: str, on_ranks: OnRanks) -> None:
    expected = outcome_of(_run(None)).state
    start = build_model("dropout_vit").state_dict()
    size = 4 if name == "hpZ" else 2
    outcome = on_ranks(size, outcome_of, _run(OPTIONS[name]))[0]
    assert relative_difference(outcome.state, expected=expected, start=start) < 1e-5


def test_secondary_shards_that_are_not_renewed_are_noticed(on_ranks: OnRanks) -> None:
    expected = outcome_of(_run(None)).state
    start = build_model("dropout_vit").state_dict()
    outcome = on_ranks(4, _without_refreshing, _run(OPTIONS["hpZ"]))[0]
    assert not relative_difference(outcome.state, expected=expected, start=start) < 1e-3
