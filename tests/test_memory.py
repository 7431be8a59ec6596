"""mSAM holds one gradient-sized buffer more than plain training, and nothing else."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import ADAMW, Run, engine_for, own_part, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from torch._subclasses import FakeTensor
from torch.distributed.tensor import DTensor

# Views of a flat buffer start at multiples of so many bytes.
_ALIGNMENT = 64
_NUM_MICRO_BATCHES = 4


def _live_bytes() -> int:
    """Bytes of all storages that a tensor refers to, without those of single numbers."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # Not isinstance: it would ask lazy proxies for their class.
        kind = type(thing)
        # The local part of a DTensor is an object of its own, and fake ones have no memory.
        if not issubclass(kind, torch.Tensor) or issubclass(kind, DTensor | FakeTensor):
            continue
        if thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(size for size in storages.values() if size > 8)


def _live_bytes_after_a_step() -> int:
    """A thread of gloo's may hold what it has sent for a moment after the collective is over."""
    counts = []
    for _ in range(5):
        counts.append(_live_bytes())
        time.sleep(0.05)
    return min(counts)


def _measured(sharding: dict[str, Any], algorithm: str, model: str) -> tuple[int, list[int]]:
    """Bytes after a step, and in each of its forwards, over what was there before."""
    base = _live_bytes()
    in_forwards: list[int] = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        in_forwards.append(_live_bytes() - base)
        return cross_entropy(model, batch)

    config = settings(
        algorithm=algorithm,
        micro_batches=_NUM_MICRO_BATCHES,
        optimizer=ADAMW,
        precision="float32",
        **sharding,
    )
    engine = engine_for(Run(config, model=model), loss_fn=loss_fn)
    batch = own_part(engine, mini_batch(0, dtype=torch.float32))
    for _ in range(2):
        in_forwards.clear()
        step = engine.train_step(batch)
    assert not step.skipped
    return _live_bytes_after_a_step() - base, in_forwards


def _vanilla_and_msam(row: str, model: str) -> list[tuple[int, list[int]]]:
    # The first engine makes what a process keeps.
    _measured(LAYOUTS[row].sharding, "msam", model)
    # What is frozen is not listed, which makes the census right and fast.
    gc.collect()
    gc.freeze()
    try:
        return [_measured(LAYOUTS[row].sharding, name, model) for name in ("vanilla", "msam")]
    finally:
        gc.unfreeze()


def test_one_gradient_sized_buffer_more_than_vanilla() -> None:
    parameters = [p for p in build_model("odd").parameters() if p.requires_grad]
    padded = sum(-(-p.nbytes // _ALIGNMENT) * _ALIGNMENT for p in parameters)
    vanilla, msam = _vanilla_and_msam("replicated", "odd")
    assert msam[0] - vanilla[0] == padded
    ascents, descents = msam[1][::2], msam[1][1::2]
    assert len(ascents) == len(descents) == len(vanilla[1]) == _NUM_MICRO_BATCHES
    for at_weights, perturbed, plain in zip(ascents, descents, vanilla[1], strict=True):
        assert at_weights - plain == padded
        assert perturbed - plain == padded


@pytest.mark.parametrize(("row", "share"), [("FSDP", 2), ("ZeRO-2", 1), ("ZeRO-3", 2)])
def test_it_is_sharded_where_gradients_are(row: str, share: int, on_ranks: OnRanks) -> None:
    parameters = [p for p in build_model("bert").parameters() if p.requires_grad]
    exact = sum(p.nbytes for p in parameters) / share
    for vanilla, msam in on_ranks(2, _vanilla_and_msam, row, "bert"):
        more = msam[0] - vanilla[0]
        # Shards are padded to equal sizes, and views to 64 bytes.
        assert 0.97 * exact <= more <= 1.03 * exact + _ALIGNMENT * len(parameters)


def test_the_census_sees_a_second_copy_of_the_weights() -> None:
    base = _live_bytes()
    copies = [p.detach().clone() for p in build_model("odd").parameters()]
    assert _live_bytes() - base == sum(copy.nbytes for copy in copies if copy.nbytes > 8)
