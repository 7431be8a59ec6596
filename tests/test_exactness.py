"""What must hold to the last bit, and what must not change at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_models import BATCH_SIZE, cross_entropy, mini_batch
from engine_runs import Run, engine_for, outcome_of, own_part, relative_difference, settings
from rank_pool import OnRanks


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_steps_at_learning_rate_zero_leave_every_bit(precision: str) -> None:
    run = Run(settings(micro_batches=4, precision=precision, chunk=5, rho=0.5))
    engine = engine_for(run, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    before = engine.full_state_dict()
    dtype = torch.float64 if precision == "float64" else torch.float32
    for step in range(20):
        engine.train_step(own_part(engine, mini_batch(step % 3, dtype=dtype)))
    after = engine.full_state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def _special_cases() -> list[bool]:
    """Which of pairs of runs end in the same state: vanilla and ρ = 0, vanilla and ρ > 0, SAM."""
    pairs = [
        (settings(algorithm="vanilla", micro_batches=4), settings(micro_batches=4, rho=0.0)),
        (settings(algorithm="vanilla", micro_batches=4), settings(micro_batches=4)),
        (settings(algorithm="sam"), settings(micro_batches=1)),
    ]
    same = []
    for pair in pairs:
        one, other = (outcome_of(Run(config, steps=3)).state for config in pair)
        same.append(all(torch.equal(one[name], other[name]) for name in one))
    return same


@pytest.mark.parametrize("size", [1, 2])
def test_radius_zero_is_vanilla_and_one_micro_batch_is_sam(size: int, on_ranks: OnRanks) -> None:
    assert on_ranks(size, _special_cases) == [[True, False, True]] * size


def test_the_order_of_micro_batches_does_not_matter() -> None:
    order = torch.arange(BATCH_SIZE).view(4, -1)[torch.tensor([2, 0, 3, 1])].flatten()
    run = Run(settings(micro_batches=4))
    plain, permuted = engine_for(run), engine_for(run)
    start = plain.full_state_dict()
    for step in range(5):
        batch = mini_batch(step)
        plain.train_step(batch)
        permuted.train_step(tuple(tensor[order] for tensor in batch))
    expected, state = plain.full_state_dict(), permuted.full_state_dict()
    assert relative_difference(state, expected=expected, start=start) < 1e-12
    # Samples that change their micro-batch do matter.
    mixed = engine_for(run)
    for step in range(5):
        mixed.train_step(
            tuple(
                tensor.view(4, 8, *tensor.shape[1:]).transpose(0, 1).flatten(0, 1)
                for tensor in mini_batch(step)
            )
        )
    assert relative_difference(mixed.full_state_dict(), expected=expected, start=start) > 1e-3


def _perturbations(scale: float, *, precision: str, rho: float = 0.1) -> list[torch.Tensor]:
    """ε of each micro-batch of one step, all trainable parameters in one vector."""
    seen = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        flat = [p.detach().double().flatten() for p in model.parameters() if p.requires_grad]
        seen.append(torch.cat(flat))
        return scale * cross_entropy(model, batch)

    engine = engine_for(
        Run(settings(micro_batches=4, precision=precision, rho=rho)), loss_fn=loss_fn
    )
    dtype = torch.float64 if precision == "float64" else torch.float32
    engine.train_step(mini_batch(0, dtype=dtype))
    return [second - first for first, second in zip(seen[::2], seen[1::2], strict=True)]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize(("precision", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
def test_the_scale_of_the_loss_does_not_change_the_perturbation(
    scale: float, precision: str, bound: float
) -> None:
    plain = _perturbations(1.0, precision=precision)
    scaled = _perturbations(scale, precision=precision)
    assert len(plain) == 4
    for one, other in zip(plain, scaled, strict=True):
        assert float(one.norm()) == pytest.approx(0.1, rel=bound)
        assert float((one - other).norm()) < bound * 0.1


def test_each_micro_batch_has_a_perturbation_of_its_own() -> None:
    first, second, *_ = _perturbations(1.0, precision="float64")
    assert float((first - second).norm()) > 0.01


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_zero_gradient_perturbs_nothing(precision: str) -> None:
    assert all(
        torch.equal(epsilon, torch.zeros_like(epsilon))
        for epsilon in _perturbations(0.0, precision=precision)
    )


def test_a_micro_batch_with_a_zero_gradient_leaves_the_others_right() -> None:
    """Samples of class 0 lose their loss, and all of micro-batch 1 is of class 0."""

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (losses * (batch[1] > 0)).mean()  # type: ignore[no-any-return]

    images, labels = mini_batch(0)
    labels = labels.clone()
    labels[BATCH_SIZE // 2 :] = 0
    engine = engine_for(Run(settings(micro_batches=2)), loss_fn=loss_fn)
    step = engine.train_step((images, labels))
    assert not step.skipped
    assert all(bool(tensor.isfinite().all()) for tensor in engine.full_state_dict().values())
    half = engine_for(Run(settings(micro_batches=1, batch_size=BATCH_SIZE // 2)), loss_fn=loss_fn)
    only = half.train_step((images[: BATCH_SIZE // 2], labels[: BATCH_SIZE // 2]))
    assert step.grad_norm == pytest.approx(only.grad_norm / 2, rel=1e-12)
    assert step.ascent_norm == pytest.approx(only.ascent_norm / 2, rel=1e-12)
