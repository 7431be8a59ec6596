"""Runs and checkpoints from elsewhere, made to run commands, to take the memory, or to lie."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import mini_batch
from engine_runs import Run, engine_for, settings
from finished_run import NUM_STEPS, FinishedRun
from memory_bound import bounded_pages
from safetensors.torch import save_file
from saved_state import checkpoint_tensors, edit_progress, rewrite_tensors

from data_pipelines.errors import UserError
from launch.cli import main
from msam_scale.checkpoint import DamagedCheckpointError
from msam_scale.models import ModelRequest, build_model
from msam_scale.training.resuming import check_checkpoint

_CHECKPOINT = f"checkpoints/step-{NUM_STEPS:08d}"
# Clears a terminal, starts a line anew, pretends to be a line of ours, turns the writing round.
_NAME = "\x1b[2J\r\nrun: intact\n\u202e\x9b31m"


@pytest.fixture
def run(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A run's folder in another place, to be changed."""
    return finished_run.copied(tmp_path, name="run")


def _ask_for_commands(run: Path, *, data: Path, victim: Path) -> None:
    """Makes a run's config fetch its data by a command that leaves a mark, and consent to it."""
    command = f"pipe:touch {victim}; cat {shlex.quote(str(data))}/{{name}}"
    path = run / "config.yaml"
    text = re.sub(r"(?m)^  train: .*$", f'  train: "{command}"', path.read_text())
    text = text.replace("  cache_dir: null", f"  cache_dir: {run.parent / 'cache'}")
    path.write_text(text.replace("  allow_commands: false", "  allow_commands: true"))


@pytest.mark.parametrize(
    "words",
    [
        ["sharpness", "RUN", "--samples", "16", "--iterations", "1"],
        ["landscape", "RUN", "--samples", "16", "--points", "3", "--out", "OUT.png"],
        ["report", "RUN", "--out", "OUT.png"],
        ["export", "RUN", "--format", "safetensors", "--out", "OUT"],
        ["checkpoint", "list", "RUN"],
        ["checkpoint", "verify", "RUN"],
        ["checkpoint", "inspect", "RUN", "--tensors"],
    ],
)
def test_a_run_does_not_consent_to_its_own_commands(
    words: list[str], run: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = run.parent / "victim"
    _ask_for_commands(run, data=digits / "train", victim=victim)
    line = [word.replace("RUN", str(run)).replace("OUT", str(run.parent / "out")) for word in words]
    opens_data = words[0] in ("sharpness", "landscape")
    assert main(line) == 2 * opens_data
    said = capsys.readouterr().err
    assert ("run/config.yaml: data.train: pipe:touch" in said) == opens_data
    assert ("--allow-code" in said) == opens_data
    assert not victim.exists()
    if opens_data:
        assert main([*line, "--allow-code"]) == 0
        assert victim.exists(), "consent was given"


def test_names_do_nothing_to_a_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / _CHECKPOINT
    tensors = checkpoint_tensors(newest)
    rewrite_tensors(newest, {**tensors, f"model/{_NAME}": torch.ones(3)})

    def rename(progress: dict[str, Any]) -> None:
        progress["optimizer"] = progress["versions"][_NAME] = _NAME
        progress["config"]["model"]["name"] = progress["extra"]["data_fingerprint"] = _NAME

    edit_progress(newest, rename)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("name: wrn-10-1", f"name: {json.dumps(_NAME)}"))
    for words in (
        ["checkpoint", "inspect", str(run), "--tensors"],
        ["checkpoint", "verify", str(run)],
        ["export", str(run), "--format", "safetensors", "--out", str(run / "out")],
        ["sharpness", str(run)],
        ["train", str(config), "training.steps=20"],
    ):
        main(words)
        said = "".join(capsys.readouterr())
        assert "run: intact" not in said.splitlines(), words
        assert all(line.isprintable() for line in said.split("\n")), words
    main(["checkpoint", "inspect", str(run), "--tensors"])
    assert capsys.readouterr().out.count(r"\x1b[2J\r\nrun: intact\n\u202e\x9b31m") == 6


_BERT = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
_LARGE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wide": ("msam_scale", "wrn-10-1000", {}),
    "deep": ("msam_scale", "wrn-6000004-1", {}),
    "wide in timm": ("timm", "test_vit", {"embed_dim": 64_000}),
    "deep in timm": ("timm", "test_convnext", {"depths": [10**9, 1, 1, 1]}),
    "many classes": ("msam_scale", "wrn-10-1", {"num_classes": 10**9}),
    "many words": ("transformers", "x", {**_BERT, "vocab_size": 10**10}),
    "deep in transformers": ("transformers", "x", {**_BERT, "num_hidden_layers": 10**9}),
    "many labels": ("transformers", "x", {**_BERT, "num_labels": 10**9}),
}


@pytest.mark.parametrize("kind", _LARGE)
def test_models_are_no_larger_than_their_checkpoints(
    kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, name, arguments = _LARGE[kind]
    is_text = source == "transformers"

    def change(progress: dict[str, Any]) -> None:
        progress["config"]["model"].update(source=source, name=name)
        if is_text:
            progress["extra"]["model_settings"] = arguments
            progress["extra"]["task"] = {"kind": "text", "num_classes": 2, "num_channels": None}
        else:
            progress["config"]["model"]["args"] = arguments
            progress["extra"]["task"]["num_classes"] = arguments.get("num_classes", 10)

    edit_progress(run / _CHECKPOINT, change)
    with bounded_pages(most_bytes=400 << 20):
        words = ["export", str(run), "--format", "safetensors", "--out", str(tmp_path / "out")]
        assert main(words) == 2
    said = capsys.readouterr().err
    assert "of another model" in said
    assert str(run / _CHECKPOINT) in said
    assert len(said) < 1000


def test_a_run_is_not_opened_with_a_larger_model(
    run: Path, finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """What builds a model for a checkpoint, be it to look at a run, to go on, or to start anew."""
    config = run / "config.yaml"
    for path in (config, run.parent / "own.yaml"):
        path.write_text(finished_run.folder.joinpath("config.yaml").read_text())
        path.write_text(path.read_text().replace("name: wrn-10-1", "name: wrn-10-1000"))
    edit_progress(
        run / _CHECKPOINT, lambda progress: progress["config"]["model"].update(name="wrn-10-1000")
    )
    other = ["run.name=other", f"checkpoint.start_from={run}"]
    for words in (
        ["sharpness", str(run)],
        ["train", str(run.parent / "own.yaml"), f"run.dir={run.parent}", "run.name=run"],
        ["train", str(run.parent / "own.yaml"), f"run.dir={run.parent}", *other],
    ):
        with bounded_pages(most_bytes=400 << 20):
            assert main(words) == 2
        said = capsys.readouterr().err
        assert "step-00000012" in said
        assert "of another model" in said, words


@pytest.mark.parametrize(
    "tensors",
    [
        {"fc.weight": torch.zeros(10**6, 1)},
        {"fc.weight": torch.zeros(10**6, 0)},
        {"conv1.0.weight": torch.zeros(24, 10**6, 1, 0)},
    ],
)
def test_weights_decide_no_size_alone(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "some.safetensors")
    request = ModelRequest(
        name="test_resnet", num_classes=2, num_channels=3, weights=tmp_path / "some.safetensors"
    )
    with (
        bounded_pages(most_bytes=64 << 20),
        pytest.raises(UserError, match=r"some.safetensors does not fit"),
    ):
        build_model("timm", request, seed=0)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("step", 1 << 62, "step: Input should be less than"),
        ("step", 11, "extra.loader.step: 12 is not step 11"),
        ("skipped_steps", [0, -1], "skipped_steps.1: Input should be greater than or equal"),
        ("counters", {"loss_scale": 2.0}, "counters: Value error, of a loss scale there are"),
        ("counters", {"loss_scale": float("nan")}, "counters.loss_scale: Input should be a finite"),
        ("extra.due", 5, "extra.due: Input should be"),
        ("extra.due", ["else"], "extra.due.0: Input should be 'evaluation' or 'sharpness'"),
        ("extra.loader.next_samples", ["x"], "extra.loader.next_samples.0: Input should be"),
        ("extra.loader.bad_samples", [{"where": 1}], "extra.loader.bad_samples.0.sample_id: "),
        ("extra.loader.batch_size", 0, "extra.loader.batch_size: Input should be greater"),
        ("extra.loss_spikes", [1.0], "extra.loss_spikes: Input should be a valid dictionary"),
        ("extra.rollbacks", {"total": 1}, "extra.rollbacks.in_a_row: Field required"),
        ("extra.data_offset", "1", "extra.data_offset: Input should be a valid integer"),
        ("extra.data_set.class_names", [1], "extra.data_set.class_names.0: Input should be"),
        ("extra.data_set.tokenizer", "{}", "extra.data_set.tokenizer.name: Field required"),
        ("extra.model_settings", "code", "extra.model_settings: Input should be"),
        ("extra.task.num_classes", None, "extra.task.num_classes: Input should be a valid integer"),
    ],
)
def test_progress_that_no_run_has_is_refused(
    path: str, value: Any, complaint: str, run: Path
) -> None:
    def change(progress: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for key in outer:
            progress = progress[key]
        progress[last] = value

    check_checkpoint(run / _CHECKPOINT)
    edit_progress(run / _CHECKPOINT, change)
    with pytest.raises(DamagedCheckpointError) as caught:
        check_checkpoint(run / _CHECKPOINT)
    assert str(caught.value).startswith(f"{run / _CHECKPOINT / 'progress.json'}: damaged: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        # Fused, it would read behind the end of the state.
        ("adamw", "exp_avg", lambda tensor: tensor[:1].clone()),
        ("adamw", "exp_avg", lambda tensor: tensor[None]),
        ("adamw", "step", lambda tensor: tensor.bool()),
        ("adamw", "exp_avg_sq", lambda tensor: None),
        ("sgd", "momentum_buffer", lambda tensor: tensor.sum()),
        ("adafactor", "row_var", lambda tensor: tensor.flatten()),
    ],
)
def test_optimizer_states_of_another_shape_are_refused(
    name: str,
    key: str,
    change: Callable[[torch.Tensor], torch.Tensor | None],
    tmp_path: Path,
) -> None:
    optimizer = {"name": name, "lr": 0.1, **({"momentum": 0.9} if name == "sgd" else {})}
    engine = engine_for(Run(settings(micro_batches=4, optimizer=optimizer)))
    engine.train_step(mini_batch(0))
    folder = engine.save_checkpoint(tmp_path)
    engine.load_checkpoint(folder)  # as it was written
    tensors = checkpoint_tensors(folder)
    entry = next(entry for entry in tensors if entry.endswith(f"//{key}"))
    changed = change(tensors.pop(entry))
    if changed is not None:
        tensors[entry] = changed
    rewrite_tensors(folder, tensors)
    parameter = entry.rpartition("//")[0]
    with pytest.raises(UserError, match=rf"{folder}: '?{parameter}.*(keeps|is of torch.bool)"):
        engine.load_checkpoint(folder)
