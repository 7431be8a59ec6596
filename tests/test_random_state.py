"""The caller's random numbers and the engine's do not touch each other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_models import cross_entropy, mini_batch
from engine_runs import Run, engine_for, outcome_of, relative_difference, settings
from torch import nn

from msam_scale.initialization import initialize


class FunctionalDropout(nn.Module):
    """Draws from torch's global generator, and notes what it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 5)
        self.masks: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mask = F.dropout(torch.ones_like(images.flatten(1)), 0.5)
        self.masks.append(mask)
        return self.layer(images.flatten(1) * mask)  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", ["dropout_vit", "functional"])
def test_a_step_leaves_the_callers_generator_as_it_was(model: str) -> None:
    config = settings(micro_batches=4, chunk=3)
    if model == "functional":
        engine = initialize(FunctionalDropout(), config=config, loss_fn=cross_entropy)
    else:
        engine = engine_for(Run(config, model=model))
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    engine.train_step(mini_batch(0))
    assert torch.equal(before, torch.random.get_rng_state())


def _functional(callers_seed: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = FunctionalDropout()
    engine = initialize(model, config=settings(micro_batches=4, chunk=4), loss_fn=cross_entropy)
    torch.manual_seed(callers_seed)
    for step in range(2):
        engine.train_step(mini_batch(step))
    return model.masks, engine.full_state_dict()


def test_the_callers_generator_does_not_change_the_result() -> None:
    (_, one), (_, other) = _functional(1), _functional(2)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_both_passes_draw_the_same_and_nothing_else_does() -> None:
    """A micro-batch has two chunks: ascent, ascent, descent, descent."""
    masks, _ = _functional(1)
    assert len(masks) == 2 * 4 * 4
    different: list[torch.Tensor] = []
    for first in range(0, len(masks), 4):
        for ascent, descent in ((first, first + 2), (first + 1, first + 3)):
            assert torch.equal(masks[ascent], masks[descent])
            assert not any(torch.equal(masks[ascent], other) for other in different)
            different.append(masks[ascent])


def test_a_model_that_draws_by_itself_is_told_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="msam_scale"):
        _functional(1)
        assert [record.message for record in caplog.records if "draws random" in record.message]
        assert len(caplog.records) == 1
        caplog.clear()
        outcome_of(Run(settings(micro_batches=4), model="dropout_vit", steps=2))
        assert not caplog.records


@pytest.mark.parametrize("algorithm", ["vanilla", "msam"])
def test_the_callers_iterator_draws_from_the_callers_generator(algorithm: str) -> None:
    """Augmentation in the iterator must not repeat itself from step to step."""
    engine = engine_for(Run(settings(algorithm=algorithm, micro_batches=4), model="linear"))
    drawn: list[float] = []

    def micro_batches() -> Iterator[Any]:
        images, labels = mini_batch(0)
        for part in range(4):
            drawn.append(float(torch.rand(())))
            yield images[part * 8 : part * 8 + 8], labels[part * 8 : part * 8 + 8]

    torch.manual_seed(21)
    for _ in range(3):
        engine.train_step(micro_batches())
    torch.manual_seed(21)
    assert drawn == [float(torch.rand(())) for _ in range(12)]


def test_the_seed_changes_masks_and_only_masks() -> None:
    def run(seed: int, model: str) -> Run:
        return Run(settings(micro_batches=4, seed=seed), model=model, steps=2)

    odd, again = (outcome_of(run(seed, "odd")).state for seed in (1, 2))
    assert all(torch.equal(odd[name], again[name]) for name in odd)
    vit, other = (outcome_of(run(seed, "dropout_vit")).state for seed in (1, 2))
    start = {name: torch.zeros_like(tensor) for name, tensor in vit.items()}
    assert relative_difference(other, expected=vit, start=start) > 1e-3
