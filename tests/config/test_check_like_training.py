"""`config check` refuses what `train` refuses before it starts, with where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from msam_scale.config import ConfigError, load_config
from msam_scale.config.load import load

OURS: dict[str, Any] = {
    "batch": {"size": 64},
    "objective": {"micro_batches": 8, "rho": 0.1},
    "training": {"eval_every": 5},
    "data": {"val": "somewhere"},
    "sharding": {"strategy": "zero2", "offload": True},
}


@pytest.mark.parametrize(
    ("override", "key", "left"),
    [
        ("objective.algorithm=vanilla", "objective.rho", 0.05),
        ("objective.algorithm=sam", "objective.micro_batches", None),
        ("data.val=null", "training.eval_every", None),
        ("sharding.strategy=fsdp", None, None),
        ("sharding.strategy=replicated", "sharding.offload", False),
    ],
)
def test_an_override_that_takes_an_effect_away_is_said(
    override: str, key: str | None, left: Any
) -> None:
    loaded = load(OURS, overrides=[override])
    if key is None:
        assert not loaded.notes
        return
    assert loaded.notes == (
        f"config: {key}: left out: it has no effect with {override} of the command line",
    )
    section, _, name = key.partition(".")
    assert loaded.config.to_dict()[section][name] == left
    assert load_config(loaded.config) == loaded.config, "what is written loads again"


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.algorithm=vanilla", "objective.rho=0.2"],
        ["objective.algorithm=sam", "objective.micro_batches=4"],
        ["data.val=null", "training.eval_every=3"],
    ],
)
def test_overrides_that_contradict_each_other_are_refused(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=overrides[1].partition("=")[0]):
        load(OURS, overrides=overrides)


def test_what_a_file_says_without_effect_is_refused_still() -> None:
    with pytest.raises(ConfigError, match=r"objective\.rho: 0\.1 has no effect"):
        load({**OURS, "objective": {"algorithm": "vanilla", "rho": 0.1}})


def test_a_baseline_keeps_the_ghost_batches_of_the_config() -> None:
    vanilla = load_config(OURS, overrides=["objective.algorithm=vanilla"])
    assert vanilla.objective.micro_batches == 8


@pytest.fixture
def config(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A whole run's config, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    content = {
        "model": {"source": "msam_scale", "name": "wrn-10-1"},
        "data": {"train": str(digits / "train"), "val": str(digits / "val")},
        "objective": {"algorithm": "msam", "micro_batches": 4},
        "batch": {"size": 32, "norm_samples": 4},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "training": {"steps": 8},
    }
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    return str(path)


NOT_THERE = [
    "optimizer.name=foo",
    "optimizer.args.beta=1",
    "data.order=bar",
    "data.transform=baz",
    "model.name=wrn-10-1x",
    "model.args.nope=1",
    "model.weights=nothing.safetensors",
    "objective.ascent=nonsense",
]


@pytest.mark.parametrize("more", [[], ["--no-data"]])
@pytest.mark.parametrize("mistake", NOT_THERE)
def test_check_finds_names_that_do_not_exist(
    mistake: str, more: list[str], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With data and without; the command line is blamed for them."""
    assert main(["config", "check", config, mistake, *more]) == 2
    error = capsys.readouterr().err
    key, _, value = mistake.partition("=")
    assert f"command line: {'.'.join(key.split('.')[:2])}" in error
    assert value in error or key.rpartition(".")[2] in error
    assert not Path("runs").exists()


def test_data_that_are_named_have_to_be_there(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "check", config]) == 0
    assert main(["config", "check", config, "data.train=nowhere"]) == 2
    assert "command line: data.train: nowhere" in capsys.readouterr().err
    assert main(["config", "check", config, "data.train=nowhere", "--no-data"]) == 0
    assert main(["config", "check", config, "data.train=null", "data.val=null"]) == 0


def test_what_an_optimizer_of_torch_cannot_do_is_said_with_the_way(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "check", config, "optimizer.args.layer_decay=0.75"]) == 2
    assert "create_optimizer_v2(model, layer_decay=0.75)" in capsys.readouterr().err


def test_what_only_a_run_needs_is_asked_of_a_run(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "check", config, "optimizer.lr=null"]) == 2
    assert "optimizer.lr: is missing" in capsys.readouterr().err
    words = ["optimizer.lr=null", "data.train=null", "data.val=null"]
    assert main(["config", "check", config, *words]) == 0


@pytest.mark.parametrize(
    ("override", "blamed"),
    [
        ("optimizer.name=adamw", "optimizer.name: optimizer.momentum: AdamW has no such argument"),
        ("batch.size=2048", "batch.size: 2048"),
        ("training.steps=1", "training.steps: a warm-up of 1 steps is not shorter"),
    ],
)
def test_an_override_is_blamed_for_what_it_breaks_in_the_file(
    override: str, blamed: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(Path(config).read_text())
    content["schedule"] = {"name": "cosine", "warmup": 1}
    Path(config).write_text(json.dumps(content))
    assert main(["config", "check", config, override]) == 2
    assert f"command line: {blamed}" in capsys.readouterr().err


def test_names_from_a_deepspeed_config_are_told_in_its_words(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "train_batch_size": 32,
        "optimizer": {"type": "Foo", "params": {"lr": 0.1}},
        "msam": {"micro_batches": 4, "ascent": "nonsense"},
    }
    (tmp_path / "ds.json").write_text(json.dumps(content))
    assert main(["config", "check", str(tmp_path / "ds.json")]) == 2
    error = capsys.readouterr().err
    assert "ds.json: optimizer.type: unknown optimizer 'foo'" in error
    assert "ds.json: msam.ascent: unknown ascent rule 'nonsense'" in error


def test_sizes_of_images_and_model_are_compared(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything starts; a model that is fed by other means than its weights is run."""
    words = ["model.source=timm", "model.name=test_vit", "batch.norm_samples=null"]
    assert main(["config", "check", config, *words, "model.args.img_size=160"]) == 2
    assert "8 × 8 pixels" in capsys.readouterr().err
    fitting = ["model.args.img_size=8", "model.args.patch_size=4"]
    assert main(["config", "check", config, *words, *fitting]) == 0


def test_notes_are_printed(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["objective.algorithm=vanilla", "training.eval_every=2"]
    content = json.loads(Path(config).read_text())
    content["objective"]["rho"] = 0.1
    Path(config).write_text(json.dumps(content))
    assert main(["config", "check", config, *words]) == 0
    assert "objective.rho: left out" in capsys.readouterr().err
    assert main(["train", config, *words, "training.steps=2", "monitor.progress=false"]) == 0
    assert "objective.rho: left out" in capsys.readouterr().err
