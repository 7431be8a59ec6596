"""Fused Adam beside parameters that FSDP2 keeps whole, and settings of parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_models import build_model, mini_batch
from engine_runs import ADAMW, Run, engine_for, outcome_of, own_part, relative_difference, settings
from rank_pool import OnRanks
from saved_state import Held, optimizer_state_of

pytestmark = pytest.mark.layouts


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_fused_adam_steps_shards_and_what_is_whole(precision: str, on_ranks: OnRanks) -> None:
    """The model has a parameter without dimensions, and in fewer bits norms stay whole as well."""
    arguments: dict[str, Any] = {"micro_batches": 4, "optimizer": ADAMW}
    exact = outcome_of(Run(settings(**arguments), steps=4)).state
    start = build_model("odd").state_dict()
    arguments["precision"] = precision
    replicated = outcome_of(Run(settings(**arguments), steps=4)).state
    sharded = on_ranks(2, outcome_of, Run(settings(**arguments, strategy="fsdp"), steps=4))[0].state
    level = relative_difference(replicated, expected=exact, start=start)
    # Adam makes whole steps of gradients that are nothing but rounding: errors scatter.
    assert relative_difference(sharded, expected=exact, start=start) < max(1e-9, 5 * level)


def _two_groups(parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": parameters[::2]}, {"params": parameters[1::2]}]
    return torch.optim.AdamW(groups, lr=0.05, fused=True)


def _rates_and_state(config: dict[str, Any]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The last step's rates by group; another engine takes the state and goes on alike."""
    engine, other = (engine_for(Run(config), optimizer=_two_groups) for _ in range(2))
    batches = [own_part(engine, mini_batch(step, dtype=torch.float64)) for step in range(4)]
    for batch in batches[:3]:
        engine.train_step(batch)
    other._sharding.load(Held(engine.full_state_dict()), optimizer_state_of(engine))
    other.num_steps_done = 3
    for one in (engine, other):
        one.train_step(batches[3])
    state = engine.full_state_dict()
    assert all(state[name].equal(value) for name, value in other.full_state_dict().items())
    return [group["lr"] for group in engine._sharding.optimizer.param_groups], state


def test_groups_that_are_split_follow_their_schedule(on_ranks: OnRanks) -> None:
    schedule = {
        "name": "WarmupLR",
        "args": {"warmup_max_lr": 0.02, "warmup_num_steps": 4, "warmup_type": "linear"},
    }
    arguments: dict[str, Any] = {"micro_batches": 4, "precision": "float64"}
    arguments["optimizer"] = {"name": "adamw"}
    rates, expected = _rates_and_state(settings(**arguments) | {"schedule": schedule})
    sharded = settings(**arguments, strategy="fsdp") | {"schedule": schedule}
    found, state = on_ranks(2, _rates_and_state, sharded)[0]
    assert len(found) > len(rates) == 2
    assert set(found) == set(rates)
    assert found[0] == pytest.approx(0.01)
    start = build_model("odd").state_dict()
    assert relative_difference(state, expected=expected, start=start) < 1e-9
