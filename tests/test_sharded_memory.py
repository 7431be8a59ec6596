"""Bytes that each rank holds between two steps, by kind, against the formula."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from engine_models import build_model, mini_batch
from engine_runs import ADAMW, Run, engine_for, own_part, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from report import add_row
from torch.distributed.tensor import DTensor

pytestmark = pytest.mark.part("memory")

_TITLE = "Memory: bytes on rank 0 between two steps, live and by the formula of docs/sharding.md"
_KINDS = ("weights", "gradient", "ascent", "optimizer")
CELLS = [(row, size) for row, layout in LAYOUTS.items() for size in layout.sizes]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _nbytes(tensors: Any) -> int:
    """Bytes of the storages behind tensors, each counted once."""
    storages = {}
    for tensor in tensors:
        storage = _local(tensor.detach()).untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _by_kind(config: dict[str, Any]) -> dict[str, int]:
    engine = engine_for(Run(config, model="bert"))
    for step in range(2):
        engine.train_step(own_part(engine, mini_batch(step, dtype=torch.float32)))
    gc.collect()
    sharding: Any = engine._sharding
    parameters = list(engine.module.parameters())
    strategy = config["sharding"]["strategy"]
    state = [
        value
        for values in engine.optimizer.state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    ]
    if strategy == "zero3":
        from msam_scale.sharding.zero import private_api

        weights = sharding._masters + private_api.computing_shards(sharding._engine)
        return {
            "weights": _nbytes(weights),
            "gradient": sharding._gradient.nbytes,
            "ascent": sharding._accumulator.nbytes,
            "optimizer": _nbytes(state),
        }
    masters = []
    if strategy.startswith("zero"):
        from msam_scale.sharding.zero import private_api

        masters = private_api.master_partitions(sharding._engine)
    return {
        "weights": _nbytes(parameters) + _nbytes(masters),
        "gradient": sharding._accumulator.flat.nbytes,
        "ascent": sharding.ascent_gradient.flat.nbytes,
        "optimizer": _nbytes(state),
    }


def _formula(row: str, size: int) -> dict[str, float]:
    num = sum(p.numel() for p in build_model("bert").parameters())
    strategy = LAYOUTS[row].sharding["strategy"]
    group = LAYOUTS[row].sharding.get("shard_group", size)
    if strategy in ("zero1", "zero2"):
        figures = (4 * num + 4 * num / size, 4 * num, 4 * num, 8 * num / size)
    else:
        share = 1 if strategy == "replicated" else group
        weights = (8 if strategy == "zero3" else 4) * num / share
        figures = (weights, 4 * num / share, 4 * num / share, 8 * num / share)
    return dict(zip(_KINDS, figures, strict=True))


@pytest.mark.parametrize(("row", "size"), CELLS, ids=[f"{row}, W={size}" for row, size in CELLS])
def test_every_kind_of_memory_is_what_the_formula_says(
    row: str, size: int, on_ranks: OnRanks
) -> None:
    if row == "replicated" and size == 1:
        add_row(_TITLE, "", "W", *_KINDS)
    config = settings(
        micro_batches=4, optimizer=ADAMW, precision="float32", **LAYOUTS[row].sharding
    )
    num_tensors = len(list(build_model("bert").parameters()))
    live, expected = on_ranks(size, _by_kind, config)[0], _formula(row, size)
    cells = [f"{live[kind]} / {expected[kind]:.0f}" for kind in _KINDS]
    add_row(_TITLE, row, str(size), *cells)
    for kind in _KINDS:
        # Shards are padded to equal sizes, and views to 64 bytes.
        padding = 0.03 * expected[kind] + 64 * num_tensors
        assert 0.99 * expected[kind] <= live[kind] <= expected[kind] + padding, kind
