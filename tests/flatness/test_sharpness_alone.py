"""`Engine.sharpness` in one process: models with layers of their own, precisions, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_models import build_model, mini_batch
from engine_runs import Run, engine_for, settings

from msam_scale.flatness.measures import Sharpness


def _trained(run: Run, *, measures: bool) -> tuple[dict[str, torch.Tensor], list[float]]:
    engine = engine_for(run)
    losses = [engine.train_step(mini_batch(0)).loss]
    if measures:
        few = tuple(part[:8] for part in mini_batch(1))
        engine.sharpness([few], iterations=2, rho=0.05)
    losses.append(engine.train_step(mini_batch(2)).loss)
    return engine.full_state_dict(), losses


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
@pytest.mark.parametrize("model", ["wide_resnet", "dropout_vit"])
def test_running_statistics_and_dropout_are_left_alone(model: str, strategy: str) -> None:
    norm_samples = 8 if model == "wide_resnet" else None
    run = Run(settings(micro_batches=2, norm_samples=norm_samples, strategy=strategy), model=model)
    (plain, losses), (state, others) = (_trained(run, measures=it) for it in (False, True))
    assert losses == others
    assert all(plain[name].equal(state[name]) for name in plain)


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
def test_eigenvalues_and_trace_of_a_linear_model(strategy: str) -> None:
    """Its Hessian is the mean of (diag(p) - ppᵀ) ⊗ xxᵀ, with a 1 in x."""
    batches = [mini_batch(0), tuple(part[:20] for part in mini_batch(1))]
    images = torch.cat([images for images, _ in batches]).flatten(1)
    inputs = torch.cat([images, torch.ones(len(images), 1)], dim=1)
    probabilities = build_model("linear", seed=0).double()(images).softmax(-1).detach()
    curvatures = (
        torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
    )
    hessian = torch.einsum("nab,ni,nj->aibj", curvatures, inputs, inputs) / len(images)
    size = hessian.shape[0] * hessian.shape[1]
    expected = torch.linalg.eigvalsh(hessian.reshape(size, size)).flip(0)

    engine = engine_for(Run(settings(micro_batches=2, strategy=strategy), model="linear"))
    found = engine.sharpness(batches, num_eigenvalues=2, num_probes=12)
    assert found.converged
    assert found.eigenvalues == pytest.approx(expected[:2].tolist(), rel=1e-6)
    assert found.trace is not None
    assert found.trace.num_probes == 12
    trace = float(expected.sum())
    assert found.trace.standard_error < 0.2 * trace
    assert abs(found.trace.mean - trace) < 3 * found.trace.standard_error


def test_batches_have_to_be_there_and_to_stay() -> None:
    engine = engine_for(Run(settings(micro_batches=2), model="linear"))
    batch = mini_batch(0)
    mistakes: list[tuple[Any, dict[str, Any], str]] = [
        (iter([batch]), {}, "iterator"),
        ([], {}, "no sample"),
        ([batch], {"num_eigenvalues": 5, "iterations": 4}, "num_eigenvalues"),
        ([batch], {"rho": -1.0}, "rho"),
    ]
    for batches, arguments, message in mistakes:
        with pytest.raises(ValueError, match=message):
            engine.sharpness(batches, **arguments)
    sharded = engine_for(Run(settings(micro_batches=2, strategy="fsdp"), model="linear"))
    with pytest.raises(ValueError, match="no batch"):
        sharded.sharpness([])


def _sharpness(config: dict[str, Any], *, dtype: torch.dtype = torch.float64) -> Sharpness:
    return engine_for(Run(config, model="dropout_vit")).sharpness([mini_batch(0, dtype=dtype)])


def test_checkpointed_blocks_are_differentiated_twice() -> None:
    checkpointed = settings(micro_batches=2)
    checkpointed["training"] = {"activation_checkpointing": True}
    expected, found = _sharpness(settings(micro_batches=2)), _sharpness(checkpointed)
    assert found.product_error == 0
    assert found.lambda_max == pytest.approx(expected.lambda_max, rel=1e-9)


def test_differences_in_bfloat16_take_a_step_that_rounding_leaves_something_of() -> None:
    """One too large for the model gives products near zero, which hardly change with it."""
    wide = settings(micro_batches=2, precision="float32")
    narrow = settings(micro_batches=2, precision="bfloat16", strategy="fsdp")
    expected = _sharpness(wide, dtype=torch.float32)
    found = _sharpness(narrow, dtype=torch.float32)
    assert expected.product_error == 0
    assert 1e-3 < found.product_error < 0.2
    assert found.lambda_max == pytest.approx(expected.lambda_max, rel=3 * found.product_error)


def test_kinks_are_said(caplog: pytest.LogCaptureFixture) -> None:
    config = settings(micro_batches=2, norm_samples=8, strategy="fsdp")
    engine = engine_for(Run(config, model="wide_resnet"))
    found = engine.sharpness([mini_batch(0)], iterations=4)
    assert found.product_error > 0.1
    assert "λ_max may be off by any factor" in caplog.text
    caplog.clear()
    smooth = settings(micro_batches=2, strategy="fsdp")
    engine_for(Run(smooth, model="odd, all of it used")).sharpness([mini_batch(0)])
    assert not caplog.text
