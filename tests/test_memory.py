"""mSAM holds one gradient-sized buffer more than plain training, and nothing else."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import ADAMW, SGD, Run, engine_for, settings

# Views of a flat buffer start at multiples of so many bytes.
_ALIGNMENT = 64
_NUM_MICRO_BATCHES = 4


@pytest.fixture(autouse=True)
def _only_new_objects() -> Iterator[None]:
    # What is frozen is not listed, which makes the census right and fast.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _live_bytes() -> int:
    """Bytes of all storages that a tensor refers to, without those of single numbers."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # Not isinstance: it would ask lazy proxies for their class.
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(size for size in storages.values() if size > 8)


def _measured(algorithm: str, optimizer: dict[str, Any]) -> tuple[int, list[int]]:
    """Bytes after a step, and in each of its forwards, over what was there before."""
    base = _live_bytes()
    in_forwards: list[int] = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        in_forwards.append(_live_bytes() - base)
        return cross_entropy(model, batch)

    config = settings(
        algorithm=algorithm,
        micro_batches=_NUM_MICRO_BATCHES,
        optimizer=optimizer,
        precision="float32",
    )
    engine = engine_for(Run(config), loss_fn=loss_fn)
    batch = mini_batch(0, dtype=torch.float32)
    for _ in range(2):
        in_forwards.clear()
        step = engine.train_step(batch)
    assert not step.skipped
    return _live_bytes() - base, in_forwards


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_one_gradient_sized_buffer_more_than_vanilla(optimizer: dict[str, Any]) -> None:
    parameters = [p for p in build_model("odd").parameters() if p.requires_grad]
    padded = sum(-(-p.nbytes // _ALIGNMENT) * _ALIGNMENT for p in parameters)
    exact = sum(p.nbytes for p in parameters)
    assert exact <= padded < exact + _ALIGNMENT * len(parameters)
    vanilla_after, vanilla_forwards = _measured("vanilla", optimizer)
    after, forwards = _measured("msam", optimizer)
    assert after - vanilla_after == padded
    ascents, descents = forwards[::2], forwards[1::2]
    assert len(ascents) == len(descents) == len(vanilla_forwards) == _NUM_MICRO_BATCHES
    for at_weights, perturbed, vanilla in zip(ascents, descents, vanilla_forwards, strict=True):
        assert at_weights - vanilla == padded
        assert perturbed - vanilla == padded


def test_the_census_sees_a_second_copy_of_the_weights() -> None:
    base = _live_bytes()
    copies = [p.detach().clone() for p in build_model("odd").parameters()]
    assert _live_bytes() - base == sum(copy.nbytes for copy in copies if copy.nbytes > 8)
