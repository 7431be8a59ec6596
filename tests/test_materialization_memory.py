"""What building a model without memory, and filling it block by block, keeps in memory."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from deferred_models import LARGE_MODELS, Made, check_same_values, deferred
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msam_scale.layers.blocks import find_blocks
from msam_scale.materialization import (
    materialize,
    recipes,
    recorder,
)


class _Census(TorchDispatchMode):
    """Bytes of storages on the CPU that operators have made: most at a time, and in all."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.made = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                storage = leaf.untyped_storage()
                key = StorageWeakRef(storage)
                self.made += 0 if key in self._alive else storage.nbytes()
                self._alive[key] = storage.nbytes()
        self._alive = {key: size for key, size in self._alive.items() if not key.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def _num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _live_bytes() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.fixture
def _only_new_objects() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what is frozen is not listed
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_only_new_objects")
@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_deferred_model_takes_no_memory(name: str) -> None:
    before = _live_bytes()
    model, _ = deferred(LARGE_MODELS[name])
    total = _num_bytes(model.parameters())
    large = [p for p in model.parameters() if p.numel() >= recorder.FEWEST_ELEMENTS]
    assert all(parameter.is_meta for parameter in large)
    # Small tensors, and the generator's state before each draw.
    small = _num_bytes([*model.parameters(), *model.buffers()]) - _num_bytes(large)
    states = 3 * len(large) * torch.get_rng_state().numel()
    assert _live_bytes() - before <= small + states
    materialize(model, seed=0)
    assert _live_bytes() - before > 0.99 * total


def test_draws_that_are_not_kept_share_one_memory() -> None:
    # Freed one by one, they would leave gaps that small objects spoil for the next.
    with _Census() as census:
        model, _ = deferred(lambda: nn.Sequential(*(nn.Linear(256, 256) for _ in range(20))))
    assert _num_bytes(model.parameters()) > 20 * 256 * 256 * 4
    assert census.made < 2 * 256 * 256 * 4


@pytest.mark.parametrize("name", ["vit", "transformer"])
def test_a_block_at_a_time_is_in_memory(name: str) -> None:
    model, _ = deferred(LARGE_MODELS[name])
    largest = max(_num_bytes([parameter]) for parameter in model.parameters())
    blocks = find_blocks(model)
    assert len(blocks) >= 2
    for block in blocks:
        size = _num_bytes(block.parameters())
        with _Census() as census:
            materialize(block, seed=0)
        assert 0.9 * size < census.peak <= size + largest
    others = sum(_num_bytes(block.parameters()) for block in blocks)
    with _Census() as census:
        materialize(model, seed=0)
    rest = _num_bytes([*model.parameters(), *model.buffers()]) - others
    assert census.peak <= rest + largest, "blocks are not made a second time"


def test_intermediate_results_are_freed_as_they_are_used() -> None:
    def construct(self: Any) -> None:
        value = torch.randn(100, 100)
        for _ in range(6):
            value = value * 0.5 + 1
        self.value = nn.Parameter(value)

    model, _ = deferred(lambda: Made(construct))
    with _Census() as census:
        materialize(model, seed=0)
    assert census.peak <= 2 * _num_bytes(model.parameters())


def test_what_is_overwritten_is_not_drawn_again() -> None:
    def construct(self: Any) -> None:
        self.layer = nn.Linear(64, 64)  # draws its weight from a uniform distribution
        nn.init.normal_(self.layer.weight)
        self.kept = nn.Parameter(self.layer.weight.detach() * 2)
        nn.init.zeros_(self.layer.weight)
        self.layer.weight.data.copy_(self.layer.weight.data.t() + self.kept.data)

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    model = check_same_values(lambda: Made(construct))
    assert model.kept.std() > 1.9  # type: ignore[operator, union-attr]
    model, _ = deferred(lambda: Made(construct))
    with Calls():
        materialize(model, seed=0)
    assert not any("uniform" in name for name in names)
    assert names.count("aten.normal_.default") == 2, "once for each tensor that depends on it"


def test_recipes_are_dropped_with_their_tensors() -> None:
    gc.collect()
    recipes.drop_unused_recipes()
    before = recipes.num_recipes()
    model, _ = deferred(LARGE_MODELS["bert"])
    assert recipes.num_recipes() > before
    materialize(model, seed=0)
    assert recipes.num_recipes() == before
