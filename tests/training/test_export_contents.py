"""What an export has beside the weights: names of classes, tokenizer, preprocessing, file modes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from text_data import mini_lm, write_tiny_bert

from data_pipelines import prepare
from launch.cli import main
from msam_scale.export import EXPORT_FORMATS, load_trained_model

_VIT = (
    "model.source=timm",
    "model.name=vit_tiny_patch16_224.augreg_in21k",
    "model.args={img_size: 8, patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}",
    "batch.norm_samples=null",
    "training.steps=1",
    "data.val=null",
    "training.eval_every=null",
    "monitor.progress=false",
)


def modes(folder: str) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in Path(folder).iterdir()}


def test_a_timm_folder_describes_the_run_and_not_what_it_started_from(config: str) -> None:
    assert (
        main(["train", config, *_VIT, "data.transform=squash_bilinear:size=8,statistics=none"]) == 0
    )
    before = os.umask(0o022)
    try:
        assert main(["export", "runs/small", "--format", "timm", "--out", "exported"]) == 0
        assert main(["export", "runs/small", "--format", "safetensors", "--out", "plain"]) == 0
    finally:
        os.umask(before)
    Path("named").mkdir()
    trained = replace(load_trained_model(Path("runs/small")), class_names=tuple("abcdefghij"))
    EXPORT_FORMATS["timm"](trained, Path("named"))
    assert json.loads(Path("named/config.json").read_text())["label_names"] == [*"abcdefghij"]
    written = json.loads(Path("exported/config.json").read_text())
    settings = written["pretrained_cfg"]
    assert settings["tag"] == "small"
    assert (settings["interpolation"], settings["crop_pct"]) == ("bilinear", 1.0)
    assert settings["crop_mode"] == "squash"
    assert modes("exported") == modes("plain") == {0o644}


def test_a_transformers_folder_has_the_tokenizer_and_the_names_of_the_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    rows = "".join(f"film number {i},{('bad', 'good')[i % 2]}\n" for i in range(40))
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}")
    write_tiny_bert(tmp_path / "bert")
    data = prepare(
        "table",
        out=tmp_path / "data",
        source=tmp_path / "train.csv",
        tokenizer=str(mini_lm()),
        text_columns=("text",),
        label_column="label",
        val_fraction=0.2,
    )
    Path("texts.yaml").write_text(
        f"model: {{source: transformers, name: {tmp_path / 'bert'}}}\n"
        f"data: {{train: {data.directory}/train}}\n"
        "objective: {micro_batches: 2}\nbatch: {size: 8}\noptimizer: {name: adamw, lr: 0.001}\n"
        "training: {steps: 1}\nmonitor: {progress: false}\n"
    )
    assert main(["train", "texts.yaml"]) == 0
    words = ["export", "runs/texts", "--format", "transformers", "--out", "exported"]
    assert main(words) == 2, "a folder without tokenizer would get a wrong one"
    assert "--tokenizer" in capsys.readouterr().err
    assert not Path("exported").exists()
    assert main([*words, "--tokenizer", str(mini_lm())]) == 0
    assert AutoConfig.from_pretrained("exported").id2label == {0: "bad", 1: "good"}
    text = "a text of some words"
    theirs = AutoTokenizer.from_pretrained(str(mini_lm()))(text)["input_ids"]
    assert AutoTokenizer.from_pretrained("exported")(text)["input_ids"] == theirs
    assert main([*words[:4], "--tokenizer", "x", "--out", "y", "--format", "safetensors"]) == 2
