"""Mistakes in a training command: one clear message, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main

MISTAKES = {
    "batch.size=64 objective.micro_batches=5": ["objective.micro_batches", "4", "8", "60", "65"],
    "objective.rhoo=0.1": ["objective.rhoo", "objective.rho"],
    "objective.rho=-0.1": ["objective.rho", "-0.1"],
    "model.source=timm model.name=vit_tinny_patch16_224": ["model.name", "vit_tinny", "did you"],
    "model.name=wrn-11-1": ["model.name", "wrn-11-1", "10, 16"],
    "model.name=resnet": ["model.name", "resnet", "wrn-DEPTH-WIDTH"],
    "model.args.nope=3": ["model.args", "nope"],
    "data.train=nowhere": ["data.train", "nowhere", "data prepare"],
    "data.val=nowhere": ["data.val", "nowhere"],
    "data.transform=inception": ["data.transform", "inception", "none"],
    "data.transform=cifar_zero": ["data.transform", "3 channels", "cifar_zero:statistics=none"],
    "data.transform=cifar_basic:cutout=4": ["data.transform", "cutout=4,statistics=none works"],
    "batch.chunk=3": ["batch.chunk", "3", "16"],
    "batch.norm_samples=null batch.chunk=12": ["batch.chunk", "12", "32"],
    "batch.norm_samples=5": ["batch.norm_samples", "5"],
    "batch.size=2048": ["batch.size", "2048", "1437"],
    "optimizer.lr=fast": ["optimizer.lr", "fast"],
    "optimizer.name=sdg": ["optimizer.name", "sdg", "sgd"],
    "optimizer.name=lbfgs": ["optimizer.name", "lbfgs"],
    "optimizer.args.beta=0.9": ["optimizer.args", "beta"],
    "optimizer.name=adamw": ["optimizer.momentum", "AdamW"],
    "schedule.warmup=12": ["schedule.warmup", "12"],
    "objective.ascent=asam": ["objective.ascent", "asam", "sam"],
    "precision=float64 sharding.strategy=zero3": ["precision", "float64", "zero3", "fsdp"],
    "sharding.strategy=zero4": ["sharding.strategy", "zero4", "zero3"],
    "run.dir=small.yaml": ["run.name", "small.yaml"],
    "run.dir=/proc/nothing": ["/proc/nothing"],
    "batch.size=4000000000 batch.norm_samples=3": ["batch.norm_samples"],
    "checkpoint.resume=nowhere": ["checkpoint.resume", "nowhere"],
    "objective.rho=-1 model.name=wrn-11-1 optimizer.lr=-1": ["objective.rho", "optimizer.lr"],
    "model.name=wrn-11-1 data.val=nowhere optimizer.name=sdg": [
        "3 problems",
        "model.name",
        "data.val",
        "optimizer.name",
    ],
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_named_and_nothing_is_written(
    overrides: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert main(["train", config, *overrides.split()]) == 2
    error = capsys.readouterr().err
    for word in MISTAKES[overrides]:
        assert word in error
    assert error.startswith("msam-scale: ")
    assert "Traceback" not in error
    assert sorted(Path().rglob("*")) == before


def test_a_message_names_the_source_of_the_value(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(config).write_text(Path(config).read_text().replace("wrn-10-1", "wrn-9-1"))
    assert main(["train", config]) == 2
    assert f"{config}: model.name: " in capsys.readouterr().err
    assert main(["train", config, "model.name=wrn-8-1"]) == 2
    assert "command line: model.name: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["batch: [1", "- 1\n- 2\n", "", "batch: {size: 8}\nbatch: {}\n"])
def test_an_unreadable_file_is_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.yaml").write_text(text)
    assert main(["train", "broken.yaml"]) == 2
    error = capsys.readouterr().err
    assert "broken.yaml" in error
    assert "Traceback" not in error


def test_a_mistake_is_found_before_ranks_are_started(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only ranks can find is in the tests of launchers."""
    assert main(["train", config, "--nproc", "2", "objective.micro_batches=5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("msam-scale: command line: objective.micro_batches: ")
    assert not Path("runs").exists()
