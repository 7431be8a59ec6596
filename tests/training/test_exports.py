"""Exports load in the libraries that they are for, and give the same outputs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from finished_run import FinishedRun
from safetensors import safe_open
from text_data import mini_lm, write_sentences, write_tiny_bert
from transformers import AutoModelForSequenceClassification

from data_pipelines import SampleIndex, ShardReader, prepare, transform_preset
from launch.cli import main
from launch.commands import export as export_command
from msam_scale.export import EXPORT_FORMATS, load_trained_model

_VIT = (
    "model.source=timm",
    "model.name=vit_tiny_patch16_224",
    "model.args={img_size: 8, patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}",
    "data.transform=none",
    "batch.norm_samples=null",
    "training.steps=2",
    "training.eval_every=null",
    "monitor.progress=false",
)


@pytest.fixture
def images(digits: Path) -> torch.Tensor:
    """Sixteen stored digits, scaled to [0, 1]: (samples, channels, height, width)."""
    index = SampleIndex.open(digits / "val")
    samples = [sample.image for _, sample in ShardReader(index).read(range(16))]
    return torch.from_numpy(np.stack(samples)).permute(0, 3, 1, 2) / 255


def export(run: str, kind: str, *, out: str = "exported") -> int:
    return main(["export", f"runs/{run}", "--format", kind, "--out", out])


def test_timm_loads_what_was_trained(config: str, images: torch.Tensor) -> None:
    assert main(["train", config, *_VIT]) == 0
    # Neither the data nor the rest of the run is needed.
    Path("elsewhere").mkdir()
    shutil.move("runs/small/checkpoints", "elsewhere/checkpoints")
    shutil.rmtree("runs")
    assert main(["export", "elsewhere", "--format", "timm", "--out", "exported"]) == 0
    loaded: Any = timm.create_model("local-dir:exported", pretrained=True).eval()
    trained = load_trained_model(Path("elsewhere"))
    assert trained.step == 2
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), trained.model(images), rtol=0, atol=0)
        fresh = timm.create_model("local-dir:exported", pretrained=False).eval()
        assert not torch.allclose(fresh(images), trained.model(images))
    settings = timm.data.resolve_model_data_config(loaded)
    assert settings["input_size"] == (images.shape[1], 8, 8)
    assert set(settings["mean"]) == {0.0}
    assert set(settings["std"]) == {1.0}
    # It is told the statistics that the run's transform had.
    config_of_photographs = trained.config.model_copy(
        update={"data": trained.config.data.model_copy(update={"transform": "cifar_zero"})}
    )
    Path("told").mkdir()
    section = trained.config.model
    coloured = timm.create_model(section.name, **{**section.args, "in_chans": 3})
    of_photographs = replace(trained, config=config_of_photographs, model=coloured)
    EXPORT_FORMATS["timm"](of_photographs, Path("told"))
    told = json.loads(Path("told/config.json").read_text())["pretrained_cfg"]
    expected = transform_preset("cifar_zero")
    assert expected.mean is not None
    assert expected.std is not None
    assert told["mean"] == pytest.approx(expected.mean)
    assert told["std"] == pytest.approx(expected.std)


def test_transformers_loads_what_was_trained(tmp_path: Path) -> None:
    write_sentences(tmp_path / "train.csv", num_each=20)
    write_tiny_bert(tmp_path / "bert")
    data = prepare(
        "table",
        out=tmp_path / "data",
        source=tmp_path / "train.csv",
        tokenizer=str(mini_lm()),
        text_columns=("text",),
        label_column="label",
        val_fraction=0.2,
    ).directory
    text = f"""
model: {{source: transformers, name: {tmp_path / "bert"}}}
data: {{train: {data}/train}}
objective: {{algorithm: msam, micro_batches: 2, rho: 0.05}}
batch: {{size: 8}}
optimizer: {{name: adamw, lr: 1.0e-3}}
training: {{steps: 2}}
monitor: {{progress: false}}
"""
    Path("texts.yaml").write_text(text)
    assert main(["train", "texts.yaml"]) == 0
    # A checkpoint knows the model's settings: where they came from may be gone.
    (tmp_path / "bert").rename(tmp_path / "gone")
    assert main(["train", "texts.yaml"]) == 0
    words = ["--format", "transformers", "--tokenizer", str(mini_lm()), "--out", "exported"]
    assert main(["export", "runs/texts", *words]) == 0
    loaded = AutoModelForSequenceClassification.from_pretrained("exported").eval()
    model = load_trained_model(Path("runs/texts")).model
    tokens = torch.randint(1000, 2000, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    with torch.no_grad():
        outputs = [one(input_ids=tokens, attention_mask=mask).logits for one in (loaded, model)]
    assert outputs[0].shape == (4, 2)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)
    # The exported folder is a model to start from, too.
    again = ["train", "texts.yaml", "run.name=again", "model.name=exported"]
    assert main([*again, "model.pretrained=true", "optimizer.lr=0"]) == 0
    state = load_trained_model(Path("runs/again")).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_plain_weights_and_what_is_refused(
    finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run.copied(Path("runs"))
    assert export("small", "safetensors") == 0
    with safe_open("exported/model.safetensors", framework="pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert metadata == {"format": "pt", "source": "msam_scale", "name": "wrn-10-1", "step": "12"}
    assert names == set(load_trained_model(Path("runs/small")).model.state_dict())
    capsys.readouterr()
    assert export("small", "safetensors") == 2
    assert "never overwritten" in capsys.readouterr().err
    for kind in ("timm", "transformers"):
        assert export("small", kind, out=f"as-{kind}") == 2
        assert "safetensors works" in capsys.readouterr().err
        assert not Path(f"as-{kind}").exists()
    assert main(["export", "nowhere", "--format", "timm", "--out", "x"]) == 2
    weights = Path("runs/small/checkpoints/step-00000012/tensors-00000-00000.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert export("small", "safetensors", out="damaged") == 2
    assert str(weights) in capsys.readouterr().err


def test_the_command_names_every_format() -> None:
    assert tuple(EXPORT_FORMATS) == export_command._FORMATS
