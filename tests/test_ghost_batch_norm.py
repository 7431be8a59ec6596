"""Batch normalization over fixed runs of samples, and the models it refuses."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from engine_models import BATCH_SIZE, build_model, cross_entropy, mini_batch
from engine_runs import Run, engine_for, settings
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from msam_scale.engine import Engine
from msam_scale.errors import UserError
from msam_scale.initialization import initialize


def _model(norm: nn.Module, *extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, *extra, nn.Flatten(), nn.Linear(144, 5))


def _engine(model: nn.Module, **changes: Any) -> Engine:
    return initialize(model, config=settings(**changes), loss_fn=cross_entropy)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4), BatchNormAct2d(4), nn.BatchNorm2d(4, momentum=None)]
)
def test_vanilla_with_one_ghost_batch_is_torch_itself(norm: nn.Module) -> None:
    """Without ghosts there is nothing to differ in: weights and statistics are torch's."""
    plain = _model(copy.deepcopy(norm)).double()
    engine = _engine(_model(copy.deepcopy(norm)), algorithm="vanilla")
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for step in range(4):
        batch = mini_batch(step)
        engine.train_step(batch)
        optimizer.zero_grad()
        cross_entropy(plain, batch).backward()
        optimizer.step()
    state = engine.full_state_dict()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-10, atol=1e-12)
    engine.eval()
    plain.eval()
    torch.testing.assert_close(engine(mini_batch(9)[0]), plain(mini_batch(9)[0]))


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(6), (6,)),
        (nn.BatchNorm1d(6), (6, 5)),
        (nn.BatchNorm2d(6), (6, 5, 4)),
        (nn.BatchNorm3d(6), (6, 3, 2, 2)),
    ],
)
def test_every_dimension_is_normalised_by_ghost_batch(
    norm: nn.Module, shape: tuple[int, ...]
) -> None:
    inputs = torch.randn(16, *shape, dtype=torch.float64) * 3 + 1
    expected = torch.cat([copy.deepcopy(norm).double()(part) for part in inputs.split(4)])
    outputs = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        outputs.append(model(batch))
        return outputs[-1].square().sum() * 1e-3  # type: ignore[no-any-return]

    config = settings(micro_batches=2, norm_samples=4, batch_size=16)
    initialize(copy.deepcopy(norm), config=config, loss_fn=loss_fn).train_step(inputs)
    torch.testing.assert_close(torch.cat(outputs[::2]), expected)


def test_ghost_batches_are_counted_in_samples_of_several_rows() -> None:
    norm = nn.BatchNorm1d(6).double()
    inputs = torch.randn(16, 5, 6, dtype=torch.float64) * 3 + 1
    expected = [copy.deepcopy(norm)(part.flatten(0, 1)) for part in inputs.split(4)]
    outputs = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        outputs.append(model(batch.flatten(0, 1)))
        return outputs[-1].square().sum() * 1e-3  # type: ignore[no-any-return]

    config = settings(micro_batches=1, norm_samples=4, batch_size=16)
    initialize(norm, config=config, loss_fn=loss_fn).train_step(inputs)
    torch.testing.assert_close(outputs[0], torch.cat(expected))


def test_statistics_are_those_of_the_ascent_and_of_steps_that_are_done() -> None:
    norm = nn.BatchNorm2d(4, momentum=1.0)
    engine = _engine(_model(norm), micro_batches=4)
    seen = []
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].mean((0, 2, 3))))
    engine.train_step(mini_batch(0))
    # Ascent and descent of a micro-batch take turns.
    expected = torch.stack(seen[::2]).mean(0).detach()
    kept = engine.full_state_dict()
    torch.testing.assert_close(kept["1.running_mean"], expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(torch.stack(seen).mean(0), expected, rtol=1e-6)

    images, labels = mini_batch(1)
    images[-1, 0, 0, 0] = float("nan")
    assert engine.train_step((images, labels)).skipped
    assert all(kept[name].equal(value) for name, value in engine.full_state_dict().items())


@pytest.mark.parametrize("samples", [None, 3, 16])
def test_runs_that_do_not_fit_are_refused_with_those_that_do(
    samples: int | None,
) -> None:
    engine = engine_for(Run(settings(micro_batches=4, norm_samples=2), model="wide_resnet"))
    assert engine.plan.slice_size == 8
    if samples is None:  # a whole micro-batch fits on one rank
        engine_for(Run(settings(micro_batches=4), model="wide_resnet"))
        return
    with pytest.raises(UserError, match=rf"batch\.norm_samples.*{samples}") as caught:
        engine_for(Run(settings(micro_batches=4, norm_samples=samples), model="wide_resnet"))
    named = re.findall(r"\d+", str(caught.value).split(";")[-1])
    assert named
    for number in map(int, named):
        engine_for(Run(settings(micro_batches=4, norm_samples=number), model="wide_resnet"))


def test_chunks_that_cut_a_run_are_refused_with_those_that_do_not() -> None:
    with pytest.raises(UserError, match=r"batch\.chunk: 3 is not a multiple of the 8") as caught:
        engine_for(Run(settings(micro_batches=4, chunk=3), model="wide_resnet"))
    for number in re.findall(r"\d+", str(caught.value).split("values that fit:")[-1]):
        engine_for(Run(settings(micro_batches=4, chunk=int(number)), model="wide_resnet"))


def test_norm_samples_without_batch_norm_are_refused() -> None:
    with pytest.raises(UserError, match=r"batch\.norm_samples: 2 has no effect"):
        engine_for(Run(settings(micro_batches=4, norm_samples=2)))


def test_synchronised_batch_norm_is_refused() -> None:
    with pytest.raises(UserError, match="1: SyncBatchNorm would tie the result to the layout"):
        _engine(_model(nn.SyncBatchNorm(4)), micro_batches=4)


class Counting(nn.Module):
    """Counts its forwards in a buffer, in place or by a new tensor."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.count: torch.Tensor
        self.register_buffer("count", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.in_place:
            self.count.add_(1)
        else:
            self.count = self.count + 1
        return inputs


@pytest.mark.parametrize("in_place", [True, False])
def test_a_forward_that_writes_to_a_buffer_is_refused(in_place: bool) -> None:
    engine = _engine(_model(nn.Identity(), Counting(in_place=in_place)), micro_batches=4)
    with pytest.raises(UserError, match=r"2\.count: the model writes to it"):
        engine.train_step(mini_batch(0))


def test_instance_norm_that_tracks_statistics_is_refused() -> None:
    engine = _engine(_model(nn.InstanceNorm2d(4, track_running_stats=True)), micro_batches=4)
    with pytest.raises(UserError, match=r"1\.running_mean: the model writes"):
        engine.train_step(mini_batch(0))


def test_a_frozen_layer_uses_its_running_statistics() -> None:
    engine = _engine(_model(nn.BatchNorm2d(4)), micro_batches=4, chunk=8)
    norm = engine.module[1]  # type: ignore[index]
    norm.running_mean.fill_(0.7)
    norm.eval()
    outputs = []
    norm.register_forward_hook(lambda _, inputs, output: outputs.append((inputs[0], output)))
    engine.train_step(mini_batch(0))
    state = engine.full_state_dict()
    assert bool((state["1.running_mean"] == 0.7).all())
    assert state["1.num_batches_tracked"] == 0
    inputs, output = outputs[0]
    torch.testing.assert_close(output, (inputs - 0.7) / (1 + norm.eps) ** 0.5)


def test_a_layer_without_statistics_and_one_never_called() -> None:
    model = _model(nn.BatchNorm2d(4, track_running_stats=False))
    model.add_module("spare", nn.Identity())
    model[-1].norm = nn.BatchNorm2d(4)
    engine = _engine(model, micro_batches=4)
    assert not engine.train_step(mini_batch(0)).skipped
    state = engine.full_state_dict()
    assert not state["spare.norm.running_mean"].any()
    assert state["spare.norm.num_batches_tracked"] == 0


def test_a_layer_called_twice_counts_both_calls() -> None:
    norm = nn.BatchNorm2d(4, momentum=1.0)
    engine = _engine(_model(norm, nn.ReLU(), norm), algorithm="vanilla")
    seen = []
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].mean((0, 2, 3))))
    engine.train_step(mini_batch(0))
    state = engine.full_state_dict()
    torch.testing.assert_close(state["1.running_mean"], torch.stack(seen).mean(0).detach())
    assert state["1.num_batches_tracked"] == 1


@pytest.mark.parametrize("name", ["wide_resnet", "linear"])  # with and without layers of ours
def test_an_engine_whose_model_was_taken_over_refuses_to_go_on(name: str) -> None:
    model = build_model(name)
    first = _engine(model, micro_batches=4)
    second = _engine(model, micro_batches=2)
    with pytest.raises(UserError, match="given to another engine"):
        first.train_step(mini_batch(0))
    assert not second.train_step(mini_batch(0)).skipped
    assert second.plan.samples_per_rank == BATCH_SIZE
