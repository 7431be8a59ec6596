"""Habits of others: what is theirs to decide works, and nothing is lost in silence."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from engine_models import cross_entropy, features
from engine_runs import assert_states_close, small_engine
from torch import nn

from msam_scale.config.sections.optimization import ScheduleSection
from msam_scale.errors import UserError
from msam_scale.optimization import bind_schedule


def test_rates_that_timm_gives_its_layers_are_kept() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5))
    groups = [
        {"params": model[0].parameters(), "lr_scale": 0.1},
        {"params": model[1].parameters(), "lr_scale": 1.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    engine = small_engine(model, optimizer=optimizer, loss_fn=cross_entropy)
    for _ in range(2):
        engine.train_step(features())
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.2])
    section = ScheduleSection(name="cosine", warmup=2)
    rates = bind_schedule(section, [{"lr": 0.2, "lr_scale": 0.1}, {"lr": 0.2}], num_steps=6)
    halves = [1 / 2, 1, 1, *((1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3))]
    for step, part in enumerate(halves):
        assert [group["lr"] for group in rates(step)] == pytest.approx([0.02 * part, 0.2 * part])


def test_rates_of_layers_go_through_deepspeeds_schedules() -> None:
    section = ScheduleSection(
        name="WarmupLR",
        args={"warmup_max_lr": 0.2, "warmup_num_steps": 4, "warmup_type": "linear"},
    )
    rates = bind_schedule(section, [{"lr": 0.2, "lr_scale": 0.1}, {"lr": 0.2}], num_steps=6)
    assert [group["lr"] for group in rates(5)] == pytest.approx([0.02, 0.2])


@pytest.mark.parametrize(
    ("sleepers", "words"),
    [
        ([""], "The model is in evaluation mode"),
        (["0", "1"], r"A part of the model \(0, 1\) is in evaluation mode"),
        ([], None),
        (["2"], None),  # a batch norm, frozen as is the custom
        (["3"], None),  # has nothing that is trained
    ],
)
def test_evaluation_mode_is_said_once(
    sleepers: list[str], words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Linear(5, 5).requires_grad_(False)
    )
    engine = small_engine(model, loss_fn=cross_entropy)
    for name in sleepers:
        model.get_submodule(name).eval()
    for _ in range(2):
        engine.train_step(features())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (words is not None)
    if words is not None:
        assert re.match(words, said[0])
        assert "engine.train()" in said[0]


def test_an_evaluation_that_leaves_the_model_there_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = small_engine(nn.Linear(8, 5), loss_fn=cross_entropy)
    engine.train_step(features())
    assert not caplog.records
    engine.eval()
    engine.train_step(features())
    assert "The model is in evaluation mode" in caplog.text


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
def test_parameters_of_the_loss_are_noticed(
    strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    scale = nn.Parameter(torch.ones(5))

    def own(model: Any, batch: Any) -> torch.Tensor:
        return F.cross_entropy(scale * model(batch[0]), batch[1])

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5))

    engine = small_engine(build(), loss_fn=own, strategy=strategy)
    for _ in range(2):
        engine.train_step(features())
    (said,) = (record.getMessage() for record in caplog.records)
    assert (
        "loss_fn has trainable parameters that are not the model's (1 of them, of shapes (5,))"
        in said
    )
    caplog.clear()
    scale.requires_grad_(False)
    small_engine(build(), loss_fn=own, strategy=strategy).train_step(features())
    assert not caplog.records


def test_a_module_that_holds_model_and_loss_trains_both(caplog: pytest.LogCaptureFixture) -> None:
    """The way out that the message names."""

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.scale = nn.Linear(8, 5), nn.Parameter(torch.ones(5))

        def forward(self, batch: Any) -> torch.Tensor:
            return F.cross_entropy(self.scale * self.model(batch[0]), batch[1])

    engine = small_engine(WithLoss(), loss_fn=lambda model, batch: model(batch))
    engine.train_step(features())
    assert not bool((engine.full_state_dict()["scale"] == 1).any())
    assert not caplog.records


def _detection(size: int) -> dict[str, Any]:
    images = torch.randn(size, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    boxes = [torch.full((i % 3 + 1, 4), float(i)) for i in range(size)]
    return {
        "images": list(images),
        "targets": tuple({"boxes": one, "name": f"image {i}"} for i, one in enumerate(boxes)),
        "boxes": boxes,
        "names": [f"image {i}" for i in range(size)],
        "mask": None,
        "scale": 2.0,
        "mode": "train",
    }


def test_lists_with_one_entry_a_sample_are_cut_by_sample() -> None:
    seen: list[Any] = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        assert (batch["mask"], batch["scale"], batch["mode"]) == (None, 2.0, "train")
        assert all(isinstance(boxes, torch.Tensor) for boxes in batch["boxes"])
        for name, target, boxes in zip(
            batch["names"], batch["targets"], batch["boxes"], strict=True
        ):
            assert name == target["name"]
            assert target["boxes"].dtype is torch.float64  # moved and widened as tensors are
            assert torch.equal(target["boxes"], boxes)
        seen.extend(batch["names"])
        losses = [
            (model(image.flatten()) - target["boxes"].mean()).square().mean()
            for image, target in zip(batch["images"], batch["targets"], strict=True)
        ]
        return torch.stack(losses).mean()

    states = []
    for chunk in (None, 1, 3):
        seen.clear()
        torch.manual_seed(0)
        engine = small_engine(nn.Linear(48, 5), loss_fn=loss_fn, chunk=chunk, precision="float64")
        engine.train_step(_detection(8))
        states.append(engine.full_state_dict())
        assert sorted(seen) == sorted(2 * _detection(8)["names"])  # once in each pass
    for state in states[1:]:
        assert_states_close(states[0], state, rtol=1e-12, atol=1e-14)


def test_samples_that_were_never_collated_are_cut() -> None:
    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        inputs = torch.stack([one["x"] for one in batch])
        return F.cross_entropy(model(inputs), torch.stack([one["y"] for one in batch]))

    inputs, labels = features()
    engine = small_engine(nn.Linear(8, 5), loss_fn=loss_fn, chunk=1)
    engine.train_step([{"x": x, "y": y} for x, y in zip(inputs, labels, strict=True)])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (
            {"x": torch.zeros(8, 3), "boxes": [torch.zeros(i, 4) for i in range(1, 8)]},
            "may have one",
        ),
        ({"x": torch.zeros(8, 3), "size": (224, 224)}, r"batch\['size'\] has 2 plain values"),
        ({"x": torch.zeros(8, 3), "y": np.zeros(8)}, r"batch\['y'\] is a ndarray"),
        ({"x": torch.zeros(8, 3), "y": [torch.zeros(8)] * 8}, "a dict for each entry the former"),
        ({"x": None, "y": 3}, "holds no tensor"),
        ({"x": [torch.zeros(i) for i in range(1, 40)]}, r"batch\['x'\]\[5\]: 6, 33 more\)"),
    ],
)
def test_what_cannot_be_cut_is_refused(batch: Any, words: str) -> None:
    engine = small_engine(nn.Linear(8, 5), loss_fn=cross_entropy)
    with pytest.raises(UserError, match=words):
        engine.train_step(batch)


def test_two_samples_are_not_mistaken_for_inputs_and_labels() -> None:
    engine = small_engine(nn.Linear(8, 5), batch_size=2)
    inputs, labels = features()
    assert not engine.train_step((inputs[:2], labels[:2])).skipped
    with pytest.raises(UserError, match="train_step's batch has 8 samples; rank 0 supplies 2"):
        engine.train_step((inputs, labels))


def test_a_micro_batch_without_labels_is_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    class MeanOverLabels(nn.Linear):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:  # type: ignore[override]
            return SimpleNamespace(loss=F.cross_entropy(super().forward(x), labels))

    engine = small_engine(MeanOverLabels(8, 5))
    inputs, labels = features()
    labels[:4] = -100
    step = engine.train_step({"x": inputs, "labels": labels})
    assert not step.skipped, "the other micro-batch has labels, and counts alone"
    assert math.isfinite(step.loss)
    labels[4:] = -100
    for _ in range(3):
        assert engine.train_step({"x": inputs, "labels": labels}).skipped
    said = [r.getMessage() for r in caplog.records if "is skipped" in r.getMessage()]
    assert [text.split()[1] for text in said] == ["2", "3"], "and the fourth, the eighth …"
    assert "all labels of a micro-batch are -100" in said[0]
    ((cause, count),) = engine.skipped_steps.by_cause.items()
    assert "all labels" in cause
    assert count == 3
    inputs[7] = float("inf")
    labels[:] = 1
    engine.train_step({"x": inputs, "labels": labels})
    assert sorted(engine.skipped_steps.by_cause.values()) == [1, 3]
