"""A run that moves: ZeRO-3 on two ranks, then FSDP on four, then replicated on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_pool import OnRanks
from runs_on_ranks import train
from saved_state import checkpoint_tensors

from msam_scale.export import load_trained_model

_STEPS = 9
_WORDS = (
    "data.val=null",
    "checkpoint.every=3",
    "checkpoint.keep=9",
    f"training.steps={_STEPS}",
    "monitor.every=1",
    "monitor.tensorboard=false",
    "monitor.progress=false",
    # Smooth, and without batch normalization: what float32 rounds stays small.
    "model.source=timm",
    "model.name=vit_tiny_patch16_224",
    "model.args={img_size: 8, patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}",
    "batch.norm_samples=null",
    "optimizer.name=adamw",
    "optimizer.momentum=null",
    "optimizer.lr=0.01",
    "optimizer.args={eps: 1.0e-5}",
    "training.ema=0.9",
)


def _lines(name: str) -> list[dict[str, Any]]:
    text = Path("runs", name, "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _checkpoint(name: str) -> dict[str, torch.Tensor]:
    return checkpoint_tensors(f"runs/{name}/checkpoints/step-{_STEPS:08d}")


@pytest.mark.layouts
def test_a_run_moves_between_strategies_and_numbers_of_ranks(
    config: str, tmp_path: Path, on_ranks: OnRanks
) -> None:
    home = str(tmp_path)
    on_ranks(1, train, config, home, [*_WORDS, "run.name=whole"])
    moves = [(2, "zero3", 2), (4, "fsdp", 3), (1, "replicated", None)]
    for size, strategy, stop_after in moves:
        words = [*_WORDS, "run.name=moved", f"sharding.strategy={strategy}"]
        on_ranks(size, train, config, home, words, stop_after=stop_after)
        saved = max(Path("runs/moved/checkpoints").glob("step-*"))
        files = {path.name.split("-")[1] for path in saved.glob("tensors-*")}
        assert len(files) == size, "each rank has written"
        exported = load_trained_model(saved).model.state_dict()
        tensors = checkpoint_tensors(saved)
        assert all(torch.equal(tensors[f"model/{name}"], exported[name]) for name in exported)
    figures = ("step", "loss", "grad_norm", "ascent_norm", "lr")
    for line, expected in zip(_lines("moved"), _lines("whole"), strict=True):
        assert [line[name] for name in figures] == pytest.approx(
            [expected[name] for name in figures], rel=1e-5
        )
    moved, whole = _checkpoint("moved"), _checkpoint("whole")
    assert moved.keys() == whole.keys()
    assert any(name.startswith("average/") for name in whole)
    for name, tensor in whole.items():
        error = (moved[name] - tensor).double().norm()
        assert error <= 1e-5 * tensor.double().norm(), name
