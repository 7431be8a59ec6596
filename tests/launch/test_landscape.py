"""`msam-scale landscape` of two runs: numbers against a direct evaluation, and pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
import torch.nn.functional as F
from finished_run import NUM_STEPS, FinishedRun
from saved_state import checkpoint_tensors, checkpoint_weights, rewrite_tensors

from data_pipelines import EvaluationLoader, GlobalOrder, open_split, transform_preset
from launch.cli import main
from msam_scale.flatness.landscape import filter_normalized_direction
from msam_scale.models import ModelRequest, build_model

NAMES = ("first", "second")
NUM_SAMPLES = 48


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, finished_run: FinishedRun) -> Path:
    """The folder of two runs, `first` and `second`, the second one with other weights."""
    folder = tmp_path_factory.mktemp("landscape")
    for name in NAMES:
        finished_run.copied(folder, name=name)
    checkpoint = _checkpoint(folder / "second")
    tensors = checkpoint_tensors(checkpoint)
    rewrite_tensors(
        checkpoint, {name: one * 0.9 if "stem" in name else one for name, one in tensors.items()}
    )
    return folder


def _checkpoint(folder: Path) -> Path:
    return folder / f"checkpoints/step-{NUM_STEPS:08d}"


def _model_of(folder: Path) -> torch.nn.Module:
    request = ModelRequest(name="wrn-10-1", num_classes=10, num_channels=1, arguments={})
    model = build_model("msam_scale", request, seed=0)
    model.load_state_dict(checkpoint_weights(_checkpoint(folder)))
    return model.eval()


def _loss_directly(folder: Path, digits: Path, *, factors: list[float], seed: int) -> float:
    """The loss of all samples in one batch, at weights that are moved filter by filter."""
    index = open_split(str(digits / "train")).index
    loader = EvaluationLoader(
        index,
        batch_size=index.num_samples,
        rank=0,
        num_ranks=1,
        transform=transform_preset("none"),
        num_workers=0,
    )
    ((images, labels),) = loader
    order = GlobalOrder.for_index(index, seed=5)
    chosen = order.sample_ids(0, start=0, stop=NUM_SAMPLES)
    inputs = (images[chosen].double() / 255).permute(0, 3, 1, 2).float()
    model, start = _model_of(folder), _model_of(folder)
    for number, factor in enumerate(factors):
        generator = torch.Generator().manual_seed(seed + number)
        for parameter, weights in zip(model.parameters(), start.parameters(), strict=True):
            if weights.dim() > 1:
                drawn = torch.randn(weights.shape, generator=generator)
                with torch.no_grad():
                    for moved, filter_weights, noise in zip(parameter, weights, drawn, strict=True):
                        moved += factor * noise * filter_weights.norm() / noise.norm()
    with torch.no_grad():
        return float(F.cross_entropy(model(inputs), labels[chosen], label_smoothing=0.1))


def _draw(runs: Path, out: Path, *words: object) -> dict[str, Any]:
    folders = [str(runs / name) for name in NAMES]
    samples = ["--samples", str(NUM_SAMPLES)]
    assert main(["landscape", *folders, *samples, "--out", str(out), *map(str, words)]) == 0
    numbers: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return numbers


def test_one_dimension_is_a_direct_evaluation(runs: Path, digits: Path, tmp_path: Path) -> None:
    numbers = _draw(runs, tmp_path / "line.png", "--points", 5, "--radius", 0.5, "--seed", 3)
    assert numbers["coordinates"] == [-0.5, -0.25, 0.0, 0.25, 0.5]
    assert (numbers["dimensions"], numbers["radius"], numbers["seed"]) == (1, 0.5, 3)
    for name, run in zip(NAMES, numbers["runs"], strict=True):
        assert run["run"] == str(runs / name)
        assert (run["step"], run["samples"]) == (NUM_STEPS, NUM_SAMPLES)
        expected = [
            _loss_directly(runs / name, digits, factors=[factor], seed=3)
            for factor in numbers["coordinates"]
        ]
        assert run["losses"] == pytest.approx(expected, rel=1e-5)
        assert max(expected) - min(expected) > 1e-3  # a landscape that is not flat
    assert matplotlib.image.imread(tmp_path / "line.png").std() > 0.01


def test_two_dimensions_put_the_first_direction_first(
    runs: Path, digits: Path, tmp_path: Path
) -> None:
    numbers = _draw(runs, tmp_path / "plane.png", "--dimensions", 2, "--points", 3)
    for name, run in zip(NAMES, numbers["runs"], strict=True):
        losses = run["losses"]
        assert [len(row) for row in losses] == [3, 3, 3]
        for row, column in ((0, 1), (1, 0), (2, 0)):
            factors = [numbers["coordinates"][row], numbers["coordinates"][column]]
            expected = _loss_directly(runs / name, digits, factors=factors, seed=0)
            assert losses[row][column] == pytest.approx(expected, rel=1e-5)
        assert run["loss"] == losses[1][1]
    assert matplotlib.image.imread(tmp_path / "plane.png").std() > 0.01


def test_the_centre_is_the_loss_that_sharpness_reports(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = _draw(runs, tmp_path / "line.svg", "--points", 3)
    capsys.readouterr()
    words = ["--samples", str(NUM_SAMPLES), "--iterations", "1", "--json"]
    for name, run in zip(NAMES, numbers["runs"], strict=True):
        assert main(["sharpness", str(runs / name), *words]) == 0
        loss = json.loads(capsys.readouterr().out)["loss"]
        assert run["loss"] == run["losses"][1] == pytest.approx(loss, rel=1e-6)


def test_each_filter_of_a_direction_is_as_long_as_the_models(runs: Path) -> None:
    model = _model_of(runs / "first")
    direction = filter_normalized_direction(model, seed=1)
    parameters = list(model.parameters())
    parts = direction.split([parameter.numel() for parameter in parameters])
    num_filters = 0
    for part, parameter in zip(parts, parameters, strict=True):
        if parameter.dim() < 2:
            assert not part.any()
            continue
        num_filters += parameter.shape[0]
        torch.testing.assert_close(
            part.view_as(parameter).flatten(1).norm(dim=1),
            parameter.detach().flatten(1).norm(dim=1),
        )
    assert num_filters > 100
    assert direction.equal(filter_normalized_direction(model, seed=1))
    other = filter_normalized_direction(model, seed=2)
    assert float(F.cosine_similarity(direction, other, dim=0).abs()) < 0.05


def test_a_loss_that_overflows_is_left_out_of_picture_and_numbers(
    runs: Path, tmp_path: Path
) -> None:
    numbers = _draw(runs, tmp_path / "far.png", "--dimensions", 2, "--points", 3, "--radius", 1e30)
    losses = numbers["runs"][0]["losses"]
    assert losses[0][0] is None
    assert losses[1][1] == numbers["runs"][0]["loss"] > 0


def test_mistakes_exit_with_2_and_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object, out: Path = tmp_path / "no.png") -> str:
        assert main(["landscape", *map(str, words), "--out", str(out)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("msam-scale: ")
        assert captured.err.count("\n") == 1
        assert not out.exists()
        return captured.err

    run = runs / "first"
    assert "--points: 4 is not an odd number" in refused(run, "--points", 4)
    assert "--radius: -1" in refused(run, "--radius", "-1")
    assert ".png, .svg or .pdf works" in refused(run, out=tmp_path / "no.json")
    assert "is no folder" in refused(run, out=tmp_path / "nowhere" / "no.png")
    assert "1437" in refused(run, "--samples", 9999)
    assert "no run here" in refused(tmp_path / "nothing")
    checkpoint = _checkpoint(run)
    kept = tmp_path / "kept"
    shutil.copytree(checkpoint, kept)
    tensors = checkpoint_tensors(checkpoint)
    rewrite_tensors(checkpoint, {name: value * float("nan") for name, value in tensors.items()})
    assert "training loss is nan" in refused(run, "--samples", 32, "--points", 3)
    shutil.rmtree(checkpoint)
    kept.rename(checkpoint)
