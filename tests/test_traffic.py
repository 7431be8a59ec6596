"""What really goes over the wire in one step, counted at the level of torch's operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_models import cross_entropy, mini_batch
from engine_runs import (
    Run,
    engine_for,
    outcome_of,
    own_part,
    relative_difference,
    settings,
    with_small_buckets,
)
from rank_pool import OnRanks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from msam_scale.initialization import initialize

Call = tuple[str, int, torch.dtype]


class Collectives(TorchDispatchMode):
    """Notes each collective: its name, its bytes and its type."""

    def __init__(self, events: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events = events

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            tensors = args[0] if isinstance(args[0], list | tuple) else [args[0]]
            num_bytes = sum(tensor.nbytes for tensor in tensors)
            self.events.append((str(func), num_bytes, tensors[0].dtype))
        return func(*args, **(kwargs or {}))


def _calls(run: Run) -> list[Call]:
    """The collectives of the second step, in order."""
    engine = engine_for(run)
    engine.train_step(own_part(engine, mini_batch(0, dtype=torch.float32)))
    events: list[Call] = []
    with Collectives(events):
        engine.train_step(own_part(engine, mini_batch(1, dtype=torch.float32)))
    return events


def _counted(size: int, on_ranks: OnRanks, **changes: Any) -> list[Call]:
    run = Run(settings(precision="float32", **changes))
    first, *others = on_ranks(size, with_small_buckets, _calls, run)
    assert all(other == first for other in others)
    assert {name for name, _, _ in first} == {"c10d.allreduce_.default"}
    return first  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [2, 4])
def test_msam_sends_what_vanilla_sends_and_sam_twice_the_gradients(
    size: int, on_ranks: OnRanks
) -> None:
    vanilla = _counted(size, on_ranks, algorithm="vanilla")
    gradients = [call for call in vanilla if call[2] is torch.float32]
    assert len(gradients) > 5
    assert len(vanilla) == len(gradients) + 1  # the summary
    for m in (size, 2 * size, 8):
        for chunk in (None, 3):
            assert _counted(size, on_ranks, micro_batches=m, chunk=chunk) == vanilla
    sam = _counted(size, on_ranks, algorithm="sam")
    assert [call for call in sam if call[2] is torch.float32] == gradients * 2
    assert len(sam) == len(vanilla) + len(gradients)


def test_micro_batches_fewer_than_ranks_stay_inside_their_groups(on_ranks: OnRanks) -> None:
    """M = 2 on 4 ranks: the ascent is summed over 2 ranks, the descent over 4, once each."""
    vanilla = _counted(4, on_ranks, algorithm="vanilla")
    assert len(_counted(4, on_ranks, micro_batches=2)) == 2 * len(vanilla) - 1


def _launches_within_backward(algorithm: str) -> tuple[int, int]:
    events: list[Any] = []
    backward = torch.Tensor.backward

    def noted(tensor: torch.Tensor, *arguments: Any, **named: Any) -> None:
        backward(tensor, *arguments, **named)  # type: ignore[no-untyped-call]
        events.append("returned")

    micro_batches = 4 if algorithm == "msam" else None
    config = settings(algorithm=algorithm, micro_batches=micro_batches, precision="float32")
    engine = engine_for(Run(config, model="dropout_vit"))
    torch.Tensor.backward = noted  # type: ignore[method-assign, assignment]
    try:
        with Collectives(events):
            engine.train_step(own_part(engine, mini_batch(0, dtype=torch.float32)))
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    last = len(events) - 1 - events[::-1].index("returned")
    gradients = [index for index, event in enumerate(events) if event[-1] is torch.float32]
    return sum(index < last for index in gradients), len(gradients)


@pytest.mark.parametrize("algorithm", ["vanilla", "sam", "msam"])
def test_gradients_leave_while_the_backward_runs(algorithm: str, on_ranks: OnRanks) -> None:
    for within, all_launches in on_ranks(
        2, with_small_buckets, _launches_within_backward, algorithm
    ):
        assert all_launches > 10
        assert within >= all_launches - 1


class Branches(nn.Module):
    """One of two layers, chosen by the first sample: ranks differ in what goes unused."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(192, 5), nn.Linear(192, 5)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        chosen = int(images[0, 0, 0, 0] > 0)
        return self.layers[chosen](images.flatten(1))  # type: ignore[no-any-return]


def _train_branches() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    engine = initialize(
        Branches(), config=settings(micro_batches=4, chunk=2), loss_fn=cross_entropy
    )
    for step in range(6):
        images, labels = mini_batch(step)
        # Micro-batches 0 and 1 use one layer, 2 and 3 the other; each step the other way round.
        side = torch.ones(len(images), dtype=images.dtype)
        side[: len(images) // 2] = -1
        images[:, 0, 0, 0] = side * (-1) ** step
        engine.train_step(own_part(engine, (images, labels)))
    return engine.full_state_dict()


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_may_leave_different_parameters_unused(size: int, on_ranks: OnRanks) -> None:
    expected = _train_branches()
    start = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    for state in on_ranks(size, with_small_buckets, _train_branches):
        assert relative_difference(state, expected=expected, start=start) < 1e-12


def test_small_buckets_do_not_change_the_result(on_ranks: OnRanks) -> None:
    run = Run(settings(micro_batches=2, chunk=3))
    whole = on_ranks(4, outcome_of, run)[0].state
    for outcome in on_ranks(4, with_small_buckets, outcome_of, run):
        assert (
            relative_difference(
                outcome.state, expected=whole, start={n: t * 0 for n, t in whole.items()}
            )
            < 1e-12
        )
