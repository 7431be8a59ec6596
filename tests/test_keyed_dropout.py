"""Dropout and stochastic depth: masks that follow the sample."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn

from msam_scale.layers import PassContext, install_layers

KINDS: dict[str, nn.Module] = {
    "Dropout": nn.Dropout(0.3),
    "Dropout1d": nn.Dropout1d(0.3),
    "Dropout2d": nn.Dropout2d(0.3),
    "Dropout3d": nn.Dropout3d(0.3),
    "DropPath": DropPath(0.3),
}
DIMENSIONS = {"Dropout1d": 3, "Dropout3d": 5}
POSITIONS = range(100, 164)


class Layers:
    """Keyed layers outside any engine, driven as the engine drives them."""

    def __init__(self, *layers: nn.Module, seed: int = 3) -> None:
        self.model = nn.Sequential(*layers)
        self.context = PassContext(seed, norm_samples=1, device=torch.device("cpu"))
        install_layers(self.model, self.context)
        self.context.begin_step(0)

    def drop(self, positions: range, inputs: torch.Tensor, *, layer: int = 0) -> torch.Tensor:
        """The layer's output for samples at these positions."""
        with self.context.chunk(positions, records_statistics=False):
            return self.model[layer](inputs)  # type: ignore[no-any-return]


def _inputs(kind: str, num_samples: int = len(POSITIONS)) -> torch.Tensor:
    shape = (num_samples, 40, 3, 2, 2)[: DIMENSIONS.get(kind, 4)]
    return torch.ones(shape)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _fresh(kind: str) -> nn.Module:
    layer = KINDS[kind]
    return DropPath(0.3) if isinstance(layer, DropPath) else type(layer)(0.3)


def test_the_share_of_kept_values_and_their_scale(kind: str) -> None:
    num_samples = 3000 if kind == "DropPath" else 64
    output = Layers(_fresh(kind)).drop(range(num_samples), _inputs(kind, num_samples))
    assert output.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    one_each = output[:, 0, 0, 0] if kind == "DropPath" else output.flatten(2)[:, :, 0]
    deviation = (0.3 * 0.7 / one_each.numel()) ** 0.5
    assert abs(float((one_each > 0).float().mean()) - 0.7) < 4 * deviation


def test_what_shares_a_mask(kind: str) -> None:
    output = Layers(_fresh(kind)).drop(POSITIONS, _inputs(kind))
    for first_shared in range(1, output.dim()):
        shared = output.flatten(first_shared)
        alike = bool((shared == shared[..., :1]).all())
        assert alike == (first_shared >= {"Dropout": 9, "DropPath": 1}.get(kind, 2))


def test_drop_path_that_does_not_rescale() -> None:
    output = Layers(DropPath(0.3, scale_by_keep=False)).drop(POSITIONS, _inputs("DropPath"))
    assert output.unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("cls", "dims"), [(nn.Dropout1d, 2), (nn.Dropout3d, 4)])
def test_inputs_of_one_dimension_less_lose_whole_rows_as_with_torch(
    cls: type[nn.Dropout1d | nn.Dropout3d], dims: int
) -> None:
    inputs = torch.ones((64, 9, 3, 2)[:dims])
    for output in (Layers(cls(0.5)).drop(range(64), inputs), cls(0.5)(inputs)):
        rows = output.flatten(1)
        assert bool((rows == rows[:, :1]).all())
        assert 0.2 < float((rows[:, 0] > 0).float().mean()) < 0.8


def test_both_passes_and_all_chunks_draw_the_same(kind: str) -> None:
    layers, inputs = Layers(_fresh(kind)), _inputs(kind)
    whole = layers.drop(POSITIONS, inputs)
    assert torch.equal(whole, layers.drop(POSITIONS, inputs))
    for cuts in ([0, 3, 64], [0, 1, 2, 30, 64]):
        parts = [
            layers.drop(POSITIONS[start:stop], inputs[start:stop]) for start, stop in pairwise(cuts)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_masks_differ_by_position_step_layer_and_seed(kind: str) -> None:
    layers, inputs = Layers(_fresh(kind), _fresh(kind)), _inputs(kind)
    first = layers.drop(POSITIONS, inputs)
    others = [
        layers.drop(range(0, 64), inputs),
        layers.drop(POSITIONS, inputs, layer=1),
        Layers(_fresh(kind), seed=4).drop(POSITIONS, inputs),
    ]
    layers.context.begin_step(1)
    others.append(layers.drop(POSITIONS, inputs))
    if kind != "DropPath":
        others.append(first.roll(1, 0))
    for other in others:
        assert not torch.equal(first, other)
    layers.context.begin_step(0)
    assert torch.equal(first, layers.drop(POSITIONS, inputs))


def test_two_calls_in_one_forward_differ_and_repeat_in_the_next() -> None:
    layers, inputs = Layers(nn.Dropout(0.5)), torch.ones(8, 100)
    outputs = []
    for _ in range(2):
        with layers.context.chunk(range(8), records_statistics=False):
            outputs.append([layers.model(inputs) for _ in range(3)])
    first, second = outputs
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_samples_flattened_with_their_tokens_keep_their_masks() -> None:
    layers, inputs = Layers(nn.Dropout(0.5)), torch.ones(8, 5, 7)
    whole = layers.drop(range(8), inputs)
    flat = layers.drop(range(8), inputs.flatten(0, 1)).view_as(inputs)
    assert torch.equal(whole, flat)
    half = layers.drop(range(4, 8), inputs[4:].flatten(0, 1)).view(4, 5, 7)
    assert torch.equal(whole[4:], half)


def test_outside_passes_and_in_evaluation_layers_are_torchs_own(kind: str) -> None:
    layers, plain, inputs = Layers(_fresh(kind)), _fresh(kind), _inputs(kind)
    outputs = []
    for model in (layers.model, plain):
        torch.manual_seed(5)
        outputs.append(model(inputs))
    assert torch.equal(outputs[0], outputs[1])
    layers.model.eval()
    assert torch.equal(layers.drop(POSITIONS, inputs), inputs)
    assert isinstance(layers.model[0], type(plain))


def test_probabilities_zero_and_one() -> None:
    inputs = torch.ones(4, 6)
    assert torch.equal(Layers(nn.Dropout(0.0)).drop(range(4), inputs), inputs)
    assert not Layers(nn.Dropout(1.0)).drop(range(4), inputs).any()


def test_the_gradient_passes_where_values_were_kept(kind: str) -> None:
    layers, inputs = Layers(_fresh(kind)), _inputs(kind).double().requires_grad_()
    output = layers.drop(POSITIONS, inputs)
    output.sum().backward()
    torch.testing.assert_close(inputs.grad, output.detach(), rtol=0, atol=0)
