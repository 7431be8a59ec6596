"""Losses whose samples weigh differently, and the check of losses, on every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_runs import own_part, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from test_weighted_losses import (
    NUM_SAMPLES,
    by_hand,
    contrastive,
    tokens_and_mask,
    weighted_loss,
)
from torch import nn

from msam_scale import UserError, initialize

pytestmark = pytest.mark.layouts


def _trained(config: dict[str, Any]) -> tuple[torch.Tensor, list[tuple[float, ...]]]:
    torch.manual_seed(0)
    dtype = torch.float64 if config["precision"] == "float64" else torch.float32
    engine = initialize(nn.Linear(5, 3).to(dtype), config=config, loss_fn=weighted_loss)
    batch = own_part(engine, tuple(tensor.to(dtype) for tensor in tokens_and_mask()))
    steps = [engine.train_step(batch) for _ in range(3)]
    figures = [(step.loss, step.grad_norm, step.ascent_norm) for step in steps]
    return engine.full_state_dict()["weight"], figures


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("row", ["replicated", "FSDP", "ZeRO-1", "ZeRO-3"])
def test_every_layout_divides_by_the_weight_of_the_whole(
    row: str, micro_batches: int, on_ranks: OnRanks
) -> None:
    layout = LAYOUTS[row]
    config = settings(
        micro_batches=micro_batches,
        chunk=2,
        batch_size=NUM_SAMPLES,
        precision=layout.precision,
        check_split=True,
        **layout.sharding,
    )
    expected = by_hand(micro_batches=micro_batches, rho=0.1)
    bound = 1e-10 if layout.precision == "float64" else 1e-4
    for weights, figures in on_ranks(2, _trained, config):
        torch.testing.assert_close(weights.double(), expected["weights"], rtol=bound, atol=bound)
        torch.testing.assert_close(
            torch.tensor(figures), expected["figures"], rtol=bound, atol=bound
        )


def _is_refused(config: dict[str, Any]) -> str:
    engine = initialize(nn.Linear(5, 4), config=config, loss_fn=contrastive)
    generator = torch.Generator().manual_seed(0)
    batch = tuple(torch.randn(2, 5, generator=generator) for _ in range(2))
    try:
        engine.train_step(own_part(engine, batch))
    except UserError as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize("strategy", ["replicated", "fsdp", "zero3"])
def test_ranks_that_share_a_micro_batch_split_it(strategy: str, on_ranks: OnRanks) -> None:
    # One sample a rank, which has to serve twice.
    config = settings(
        micro_batches=1, batch_size=2, precision="float32", strategy=strategy, check_split=True
    )
    for said in on_ranks(2, _is_refused, config):
        assert "2 ranks that share a micro-batch" in said
        assert "objective.micro_batches: a multiple of 2" in said
        assert ("sharding.strategy: replicated" in said) == (strategy != "replicated")
