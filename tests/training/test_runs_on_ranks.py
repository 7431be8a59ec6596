"""Whole runs on several ranks: whatever the layout, the figures are those of one process."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from live_runs import figures, metric_lines
from rank_pool import OnRanks
from runs_on_ranks import train
from saved_state import checkpoint_weights, edit_progress

from data_pipelines import SampleIndex, UserError
from data_pipelines.index.format import offset_field
from launch.cli import main
from launch.train import _prepare_on_all
from msam_scale.checkpoint import Progress
from msam_scale.ranks import join

pytestmark = pytest.mark.layouts
_FIGURES = ("loss", "grad_norm", "ascent_norm", "accuracy", "samples")
# Vanilla, then SAM on all ranks together, then mSAM; mixup and cutmix are drawn for each one's
# parts, and take partners that other ranks train on, or other chunks.
_EVERYTHING = (
    *("precision=float64", "training.steps=6", "training.eval_every=3", "monitor.every=1"),
    *("checkpoint.every=2", "checkpoint.keep=9", "batch.norm_samples=32"),
    "objective.phases=[{until: 0.33, algorithm: vanilla}, {until: 0.66, algorithm: sam}]",
    *("data.order=lanes:lanes=4,shards=2", "data.transform=cifar_zero:statistics=none"),
    *("training.mixup=0.4", "training.cutmix=1.0", "data.on_error=substitute"),
)


def _loader_state(run: str, *, step: int) -> dict[str, Any]:
    folder = Path(f"runs/{run}/checkpoints/step-{step:08d}")
    state: dict[str, Any] = Progress.read(folder).extra["loader"]
    return state


def _damaged_copy(digits: Path, folder: Path) -> Path:
    """The digits with a byte changed in the files of some samples."""
    shutil.copytree(digits, folder)
    index = SampleIndex.open(folder / "train")
    column = index.meta.columns[0]
    for sample_id in range(0, index.num_samples, 20):
        record = index.samples[sample_id]
        with index.shard_path(int(record["shard"])).open("r+b") as shard:
            shard.seek(int(record[offset_field(column)]))
            byte = shard.read(1)[0]
            shard.seek(-1, io.SEEK_CUR)
            shard.write(bytes([byte ^ 0xFF]))
    return folder


def _assert_alike(run: str, other: str, *, step: int) -> None:
    for line, expected in zip(figures(run, *_FIGURES), figures(other, *_FIGURES), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)
    expected_weights = checkpoint_weights(f"runs/{other}/checkpoints/step-{step:08d}")
    found = checkpoint_weights(f"runs/{run}/checkpoints/step-{step:08d}")
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12)


def test_a_run_with_everything_depends_on_no_layout_and_no_restart(
    config: str, digits: Path, tmp_path: Path, on_ranks: OnRanks
) -> None:
    """Phases, lanes, mixing, and damaged samples that others stand in for."""
    damaged = _damaged_copy(digits, tmp_path / "damaged")
    words = ("monitor.progress=false", f"data.train={damaged}/train", *_EVERYTHING)
    assert main(["train", config, *words, "run.name=one"]) == 0
    trained = [line for line in metric_lines("one") if line["split"] == "train"]
    assert ["ascent_norm" in line for line in trained] == [False] * 2 + [True] * 4
    state = _loader_state("one", step=6)
    assert state["order"] == "lanes:lanes=4,shards=2"
    before_the_switch = _loader_state("one", step=2)["bad_samples"]
    assert before_the_switch
    assert all(bad in state["bad_samples"] for bad in before_the_switch), "of all phases"
    assert len(state["bad_samples"]) > len(before_the_switch)
    assert all("damaged/train" in bad["where"] for bad in state["bad_samples"])

    layout = ("batch.chunk=32", "data.workers=2", "run.name=chunks")
    assert main(["train", config, *words, *layout]) == 0
    _assert_alike("chunks", "one", step=6)
    on_ranks(2, train, config, str(tmp_path), [*words, "run.name=two"])
    _assert_alike("two", "one", step=6)
    for run in ("chunks", "two"):
        assert _loader_state(run, step=6)["bad_samples"] == state["bad_samples"]

    shutil.copytree("runs/one", "runs/parts")
    for step in (4, 6):
        shutil.rmtree(f"runs/parts/checkpoints/step-{step:08d}")
    Path("runs/parts/checkpoints/latest").write_text("step-00000002\n")
    # As saved by a version that did not have a setting yet.
    edit_progress(
        "runs/parts/checkpoints/step-00000002",
        lambda progress: progress["config"]["data"].pop("resident"),
    )
    on_ranks(2, train, config, str(tmp_path), [*words, "run.name=parts"])
    _assert_alike("parts", "one", step=6)
    assert _loader_state("parts", step=6)["bad_samples"] == state["bad_samples"]

    unmixed = ("run.name=plain", "training.mixup=null", "training.cutmix=null")
    assert main(["train", config, *words, *unmixed, "training.eval_every=6"]) == 0
    assert abs(metric_lines("plain")[0]["loss"] - metric_lines("one")[0]["loss"]) > 1e-3


def _refusal(config: str) -> str:
    words = ("model.source=timm", "model.name=test_vit", "model.args.img_size=160")
    with pytest.raises(UserError) as caught:
        _prepare_on_all(config, overrides=[*words, "batch.norm_samples=null"], ranks=join())
    return str(caught.value)


def test_what_one_rank_finds_out_is_refused_by_all(config: str, on_ranks: OnRanks) -> None:
    """The first one gives the model an image, the others do not."""
    first, second = on_ranks(2, _refusal, config)
    assert "8 × 8 pixels" in first
    assert second == first


def test_a_dry_run_on_ranks_writes_nothing(config: str, tmp_path: Path, on_ranks: OnRanks) -> None:
    on_ranks(2, train, config, str(tmp_path), [], dry_run=True)
    assert not Path("runs").exists()


# Layer norms and GELU only: rounding does not grow.
_SMOOTH = (
    *("model.source=timm", "model.name=vit_tiny_patch16_224", "batch.norm_samples=null"),
    "model.args={img_size: 8, patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}",
    *("training.steps=4", "training.eval_every=2", "monitor.every=1", "monitor.progress=false"),
)
# DeepSpeed's float32 may round elsewhere than a single process does, and not much worse.
_TIMES_SINGLE_PROCESS = 20.0
_FLOOR = 1e-6


def _differences(run: str, other: str) -> list[float]:
    """The largest relative ones of losses and norms, of accuracies, and of weights."""
    figures_of = [figures(one, "loss", "grad_norm", "ascent_norm") for one in (run, other)]
    lines = list(zip(*figures_of, strict=True))
    of_figures = max(
        abs(found / right - 1) for one, two in lines for found, right in zip(one, two, strict=True)
    )
    accuracies = zip(figures(run, "accuracy"), figures(other, "accuracy"), strict=True)
    of_accuracies = max(abs(one[0] - two[0]) for one, two in accuracies if one)
    states = [checkpoint_weights(f"runs/{name}/checkpoints/step-00000004") for name in (run, other)]
    error = sum(
        float((states[0][name].double() - right.double()).square().sum())
        for name, right in states[1].items()
    )
    norm = sum(float(right.double().square().sum()) for right in states[1].values())
    return [of_figures, of_accuracies, (error / norm) ** 0.5]


def test_every_strategy_gives_the_same_run(config: str, tmp_path: Path, on_ranks: OnRanks) -> None:
    """The validation set, which two ranks cannot share evenly, included."""
    home = str(tmp_path)
    double = (*_SMOOTH, "precision=float64")
    assert main(["train", config, *double, "run.name=exact"]) == 0
    assert main(["train", config, *_SMOOTH, "run.name=single"]) == 0
    on_ranks(2, train, config, home, [*double, "run.name=fsdp", "sharding.strategy=fsdp"])
    assert max(_differences("fsdp", "exact")) < 1e-9
    of_single = _differences("single", "exact")
    for strategy in ("zero1", "zero2", "zero3"):
        words = [*_SMOOTH, f"run.name={strategy}", f"sharding.strategy={strategy}"]
        on_ranks(2, train, config, home, words)
        found = _differences(strategy, "exact")
        for number, (error, single) in enumerate(zip(found, of_single, strict=True)):
            # An answer may lie on the edge between two classes.
            floor = 2 / 360 if number == 1 else _FLOOR
            assert error < max(floor, _TIMES_SINGLE_PROCESS * single), strategy
