"""`msam-scale sharpness` of a run: what it prints, against an independent computation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from finished_run import NUM_STEPS, FinishedRun
from numpy.typing import NDArray
from rank_pool import OnRanks
from saved_state import checkpoint_tensors, checkpoint_weights, rewrite_tensors
from scipy.sparse.linalg import LinearOperator, eigsh

from data_pipelines import EvaluationLoader, GlobalOrder, open_split, transform_preset
from launch.cli import main
from msam_scale.flatness.during_training import training_sharpness
from msam_scale.initialization import initialize
from msam_scale.models import ModelRequest, build_model
from msam_scale.ranks import join
from msam_scale.training.prepare import prepare_run

CHECKPOINT = f"checkpoints/step-{NUM_STEPS:08d}"


@pytest.fixture
def short_run(finished_run: FinishedRun) -> Path:
    """The folder of a run of twelve steps on the digits."""
    return finished_run.folder


@pytest.fixture
def moved(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the run in another place, to be damaged."""
    return finished_run.copied(tmp_path, name="moved")


def _printed(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["sharpness", *map(str, words), "--json"]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    return figures


def _independently(
    folder: Path, digits: Path, *, num_samples: int, seed: int
) -> tuple[float, float]:
    """The loss and its λ_max by ARPACK, all samples in one batch."""
    split = open_split(str(digits / "train"))
    index = split.index
    loader = EvaluationLoader(
        index,
        batch_size=index.num_samples,
        rank=0,
        num_ranks=1,
        transform=transform_preset("none"),
        num_workers=0,
    )
    ((images, labels),) = loader
    chosen = GlobalOrder.for_index(index, seed=seed).sample_ids(0, start=0, stop=num_samples)
    inputs = (images[chosen].double() / 255).permute(0, 3, 1, 2).float()
    request = ModelRequest(
        name="wrn-10-1", num_classes=10, num_channels=images.shape[3], arguments={}
    )
    model = build_model("msam_scale", request, seed=0)
    model.load_state_dict(checkpoint_weights(folder / CHECKPOINT))
    model.eval()
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(inputs), labels[chosen], label_smoothing=0.1)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)

    def product(vector: NDArray[np.float64]) -> NDArray[np.float32]:
        parts = torch.from_numpy(vector).float().flatten().split([p.numel() for p in parameters])
        shaped = [part.view_as(one) for part, one in zip(parts, parameters, strict=True)]
        second = torch.autograd.grad(gradients, parameters, shaped, retain_graph=True)
        return torch.cat([part.flatten() for part in second]).numpy()

    size = sum(parameter.numel() for parameter in parameters)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float32)
    (largest,) = eigsh(operator, k=1, which="LA", tol=1e-4, return_eigenvectors=False)
    return float(loss.detach()), float(largest)


def test_the_figures_are_those_of_an_independent_computation(
    short_run: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _printed(
        capsys, short_run, "--samples", 64, "--eigenvalues", 2, "--trace", "--probes", 4
    )
    loss, largest = _independently(short_run, digits, num_samples=64, seed=5)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["lambda_max"] == pytest.approx(largest, rel=1e-4)
    assert found["converged"]
    assert found["eigenvalues"][0] == found["lambda_max"] > found["eigenvalues"][1]
    assert max(found["residuals"]) < 1e-3
    assert found["step"] == NUM_STEPS
    assert found["samples"] == 64
    assert found["trace_probes"] == 4
    assert found["trace_standard_error"] > 0
    # B/m = 32, with an ascent of its own each.
    assert (found["micro_batches"], found["micro_batch_size"]) == (2, 32)
    assert found["m_sharpness"] > found["rho_sharpness"] > 0
    assert found["rho"] == 0.05


def test_it_prints_the_same_twice_and_wherever_the_run_lies(
    short_run: Path, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--samples", "40", "--rho", "0.1", "--micro-batches", "8"]
    assert main(["sharpness", str(short_run), *words]) == 0
    first = capsys.readouterr().out
    assert main(["sharpness", str(moved), *words]) == 0
    assert capsys.readouterr().out == first.replace(str(short_run), str(moved))
    assert f"after step {NUM_STEPS}: training loss" in first
    assert "λ_max" in first
    assert "relative residual" in first
    assert "; converged after" in first
    assert "ρ = 0.1, 2 micro-batches of 16 samples" in first
    assert "trace" not in first


def test_mistakes_exit_with_2_and_one_line(
    short_run: Path, moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: object) -> str:
        assert main(["sharpness", *map(str, words)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return captured.err

    def refused_in_one_line(*words: object) -> str:
        error = refused(*words)
        assert error.startswith("msam-scale: ")
        assert error.count("\n") == 1
        return error

    assert "no run here" in refused_in_one_line(tmp_path / "nothing")
    assert "1437" in refused_in_one_line(short_run, "--samples", 9999)
    assert "--micro-batches 5" in refused_in_one_line(short_run, "--micro-batches", 5)
    assert "--iterations" in refused_in_one_line(short_run, "--eigenvalues", 9, "--iterations", 3)
    for words in (["--eigenvalues", "0"], ["--probes", "1"], ["--rho", "-1"], ["--sample", "3"]):
        assert words[0] in refused(short_run, *words)

    checkpoint = moved / CHECKPOINT
    tensors = checkpoint_tensors(checkpoint)
    rewrite_tensors(checkpoint, {**tensors, "model/stem.weight": torch.zeros(3)})
    assert "stem.weight is" in refused_in_one_line(moved)
    rewrite_tensors(checkpoint, {name: value * float("nan") for name, value in tensors.items()})
    assert "training loss is nan" in refused_in_one_line(moved, "--samples", 32)
    (checkpoint / "tensors-00000-00000.safetensors").write_bytes(b"damaged")
    assert "safetensors: damaged" in refused_in_one_line(moved)
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace("digits/train", "gone/train"))
    assert "data.train" in refused(moved)  # and that no checkpoint is intact
    shutil.rmtree(moved / "checkpoints")
    assert "no checkpoint here" in refused_in_one_line(moved)


def _while_training(folder: Path, overrides: Sequence[str]) -> float:
    """What a run reports between two steps, resumed on these ranks after its last one."""
    ranks = join()
    often = ["monitor.sharpness_every=1", "monitor.sharpness_samples=64"]
    place = [f"run.dir={folder.parent}", f"run.name={folder.name}", *often]
    prepared = prepare_run(
        folder / "config.yaml", overrides=[*place, *overrides], world_size=ranks.size
    )
    config, data = prepared.config, prepared.data
    engine = initialize(
        prepared.model,
        config=config,
        loss_fn=data.task.loss_fn(
            dtype=torch.float32, label_smoothing=config.training.label_smoothing
        ),
        num_steps=prepared.num_steps,
    )
    assert prepared.folder.resume_from is not None
    engine.load_checkpoint(prepared.folder.resume_from)
    return training_sharpness(engine, data)[0]


def test_a_measurement_while_training_is_that_of_the_command(
    short_run: Path, capsys: pytest.CaptureFixture[str], on_ranks: OnRanks
) -> None:
    """On two ranks that share the samples. Differences do not come near for a network of ReLUs."""
    expected = _printed(capsys, short_run, "--samples", 64)["lambda_max"]
    first, second = on_ranks(2, _while_training, short_run, [])
    assert first == second == pytest.approx(expected, rel=1e-4)


def test_a_run_without_a_finite_loss_goes_on(moved: Path) -> None:
    checkpoint = moved / CHECKPOINT
    tensors = checkpoint_tensors(checkpoint)
    tensors["model/stem.weight"].fill_(float("nan"))
    rewrite_tensors(checkpoint, tensors)
    assert isnan(_while_training(moved, []))
