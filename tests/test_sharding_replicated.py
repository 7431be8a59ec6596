"""Rank 0's weights on all ranks, whatever the layout of their memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import settings
from rank_pool import OnRanks
from torch import nn

from msam_scale.initialization import initialize
from msam_scale.sharding.flat_buffer import FlatBuffer
from msam_scale.sharding.norms import square_sum

# What a rank might hold in a buffer, from its own number.
BUFFERS: dict[str, Callable[[int], torch.Tensor]] = {
    "one number": lambda rank: torch.tensor(float(rank)),
    "empty": lambda rank: torch.empty(0),
    "transposed": lambda rank: (torch.arange(6.0).view(2, 3) + rank).t(),
    "channels last": lambda rank: (torch.arange(24.0).view(1, 2, 3, 4) + rank).to(
        memory_format=torch.channels_last
    ),
    "every second": lambda rank: (torch.arange(10.0) + 100 * rank)[::2],
    "expanded, the same everywhere": lambda rank: torch.ones(1).expand(7),
    "a bool": lambda rank: torch.tensor([rank == 0, True]),
    "int16": lambda rank: torch.full((3,), rank, dtype=torch.int16),
    "uint16": lambda rank: torch.full((3,), rank).to(torch.uint16),
    "a bfloat16": lambda rank: torch.full((3,), rank + 0.5, dtype=torch.bfloat16),
    "complex": lambda rank: torch.full((3,), 1j * rank),
}


def _buffers_after_initialize() -> list[str]:
    """The buffers that do not hold what rank 0 has made, or whose neighbours have changed."""
    rank = dist.get_rank()
    model = nn.Linear(3, 2)
    for name, make in BUFFERS.items():
        model.register_buffer(name, make(rank))
    initialize(model, config=settings(micro_batches=2, precision="float32"), loss_fn=cross_entropy)
    wrong = [name for name, make in BUFFERS.items() if not model.get_buffer(name).equal(make(0))]
    skipped = model.get_buffer("every second").untyped_storage()
    neighbours = torch.empty(0).set_(skipped)[1::2]
    if not neighbours.equal((torch.arange(10.0) + 100 * rank)[1::2]):
        wrong.append("neighbours")
    return wrong


def test_every_kind_of_buffer_comes_from_rank_0(on_ranks: OnRanks) -> None:
    assert on_ranks(2, _buffers_after_initialize) == [[]] * 2


class Strided(nn.Module):
    """A linear layer whose weight is a part of a larger tensor, transposed or packed."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        packed = torch.randn(5, 192, generator=generator)
        within = torch.zeros(5, 384)[:, ::2]
        weight = {"packed": packed, "transposed": packed.t().contiguous().t(), "part": within}
        self.weight = nn.Parameter(weight[layout].copy_(packed))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.linear(images.flatten(1), self.weight)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adagrad"])
@pytest.mark.parametrize("layout", ["transposed", "part"])
def test_strides_of_a_parameter_do_not_matter(layout: str, optimizer: str) -> None:
    def trained(layout: str) -> torch.Tensor:
        config = settings(micro_batches=2, optimizer={"name": optimizer, "lr": 0.05})
        engine = initialize(
            Strided(layout), config=config | {"precision": "float32"}, loss_fn=cross_entropy
        )
        for step in range(3):
            engine.train_step(mini_batch(step, dtype=torch.float32))
        return engine.full_state_dict()["weight"]

    torch.testing.assert_close(trained(layout), trained("packed"), rtol=1e-4, atol=1e-6)


def test_flat_buffers_keep_shapes_strides_and_gaps() -> None:
    tensors = [
        torch.randn(3, 5),
        torch.randn(()),
        torch.randn(0),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(7, 2).t(),
    ]
    buffer = FlatBuffer(tensors)
    for view, tensor, start in zip(buffer.views, tensors, buffer.starts, strict=True):
        assert view.shape == tensor.shape
        assert view.stride() == tensor.stride()
        assert start * view.element_size() % 64 == 0
        view.copy_(tensor)
    assert all(torch.equal(*pair) for pair in zip(buffer.views, tensors, strict=True))
    exact = sum(tensor.double().square().sum() for tensor in tensors)
    torch.testing.assert_close(square_sum(buffer.flat), exact, rtol=1e-6, atol=0)


def test_long_sums_of_squares_stay_right() -> None:
    """A float32 sum in one go is off by 1e-3 here; only a float64 one across blocks is right."""
    flat = torch.full((3_000_001,), 0.1)
    exact = float(flat[0].double().square() * len(flat))
    assert float(square_sum(flat)) == pytest.approx(exact, rel=1e-6)
    assert float(square_sum(flat[:7])) == pytest.approx(exact * 7 / len(flat), rel=1e-6)


def test_an_export_is_a_copy_under_the_original_names() -> None:
    model = build_model("odd")
    names = list(model.state_dict())
    engine = initialize(model, config=settings(micro_batches=2), loss_fn=cross_entropy)
    state = engine.full_state_dict()
    assert list(state) == names
    assert torch.equal(state["tied.weight"], state["mix.weight"])
    engine.train_step(mini_batch(0))
    assert not torch.equal(state["scale"], engine.full_state_dict()["scale"])
    assert model.tied.weight is model.mix.weight  # type: ignore[union-attr]
