"""Models built without memory get the values that building them normally gives, bit for bit."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from engine_models import MODELS, cross_entropy
from engine_runs import settings
from rank_pool import OnRanks
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from data_pipelines.errors import UserError
from msam_scale import initialize
from msam_scale.layers.blocks import find_blocks
from msam_scale.materialization import (
    check_can_materialize,
    deferred_initialization,
    materialize,
    recipes,
    recorder,
)
from msam_scale.ranks import join
from msam_scale.sharding import STRATEGIES

Build = Callable[[], nn.Module]
SEED = 5


class Made(nn.Module):
    """A module whose constructor is a function."""

    def __init__(self, construct: Callable[[Any], None]) -> None:
        super().__init__()
        construct(self)


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def _bert() -> nn.Module:
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=300, num_hidden_layers=2, **small))


def _gpt2() -> nn.Module:
    config = GPT2Config(
        n_embd=64, n_layer=2, n_head=2, vocab_size=300, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def _timm(name: str, **arguments: Any) -> Build:
    return lambda: timm.create_model(name, **arguments)


LARGE_MODELS: dict[str, Build] = {
    "vit": _timm("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=7),
    "resnet": _timm("resnet14t", num_classes=7),
    "convnext": _timm("convnext_atto", depths=(1, 1, 1, 1), num_classes=7, drop_path_rate=0.1),
    "swin": _timm("swin_tiny_patch4_window7_224", depths=(1, 2), num_heads=(2, 4), embed_dim=32),
    "eva": _timm("eva02_tiny_patch14_224", img_size=28, depth=2),
    "bert": _bert,
    "gpt2": _gpt2,
    "attention": lambda: nn.MultiheadAttention(64, 4),
    "transformer": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(64, 4, 96, batch_first=True), 2
    ),
    "lstm": lambda: nn.LSTM(48, 32, num_layers=2),
}


def _initializers(self: Any) -> None:
    self.orthogonal = nn.Parameter(nn.init.orthogonal_(torch.empty(64, 48)))
    self.truncated = nn.Parameter(nn.init.trunc_normal_(torch.empty(64, 64), a=-1, b=1))
    self.sparse = nn.Parameter(nn.init.sparse_(torch.empty(64, 64), 0.1))
    self.dirac = nn.Parameter(nn.init.dirac_(torch.empty(32, 32, 3)))
    self.eye = nn.Parameter(nn.init.eye_(torch.empty(40, 40)))
    self.kaiming = nn.Parameter(nn.init.kaiming_normal_(torch.empty(64, 64)))
    self.xavier = nn.Parameter(nn.init.xavier_uniform_(torch.empty(64, 64)))


def _parametrizations(self: Any) -> None:
    self.weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))
    self.orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(64, 64))
    self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(64, 64))


def _buffers(self: Any) -> None:
    self.register_buffer("order", torch.randperm(5000))
    self.register_buffer("draws", torch.randint(9, (5000,)), persistent=False)
    self.register_buffer("corners", torch.triu_indices(90, 90))
    self.gathered = nn.Parameter(torch.randn(5000)[self.order])
    self.register_buffer("joined", torch.cat([self.gathered.detach(), torch.zeros(3)]))
    self.register_buffer("few", torch.stack([self.gathered.detach()[:5], torch.ones(5)]))
    self.register_buffer("grid", torch.meshgrid(torch.arange(50), torch.arange(50))[0])


def _layouts(self: Any) -> None:
    self.filters = nn.Conv2d(16, 32, 3).to(memory_format=torch.channels_last)
    self.transposed = nn.Parameter(torch.randn(64, 80).t())
    self.dense = nn.Parameter(torch.randn(64, 80).t().contiguous())
    self.part = nn.Parameter(torch.randn(2, 4096)[1:])
    self.double = nn.Linear(64, 64).double()
    self.half = nn.Linear(64, 64).half().requires_grad_(False)
    self.complex = nn.Parameter(torch.polar(torch.rand(40, 40), torch.rand(40, 40)))
    self.bits = nn.Parameter(torch.randn(64, 64).view(torch.int32).view(torch.float32))
    self.scale = nn.Parameter(torch.tensor(1.3))
    self.empty = nn.Parameter(torch.empty(0))


def _writes(self: Any) -> None:
    self.first, self.second = _parameter(64, 64), _parameter(64, 64)
    self.second.data.copy_(self.first.data)
    self.first.data[3] = 7
    self.first.data.t_().mul_(2)
    self.first.data[self.first.data < 0] = 0.5
    for piece in self.second.data.chunk(3):
        nn.init.normal_(piece, std=0.02)
    torch._foreach_mul_([self.first.data, self.second.data], 2.0)
    self.small = _parameter(5)
    torch._foreach_add_([self.small.data, self.first.data], 1.0)
    product = torch.empty(64, 64)
    assert torch.mul(self.first.data, self.second.data, out=product) is product
    self.product = nn.Parameter(product)
    self.product.data = self.product.data + torch.from_numpy(np.eye(64, dtype=np.float32))
    self.bernoulli = nn.Parameter(torch.bernoulli(torch.rand(64, 64)))
    self.normal = nn.Parameter(torch.normal(torch.randn(64, 64), torch.rand(64, 64)))


def _values_on_the_host(self: Any) -> None:
    rates = torch.linspace(0, 1, 2000)
    self.rates = rates.tolist()
    self.num_large = int((rates > 0.7).sum())
    self.largest = rates.max().item()
    self.chosen = _parameter(len(rates[rates > 0.4]), 2)
    self.from_numpy = nn.Parameter(torch.from_numpy(rates.numpy() * 2))
    self.text = repr(rates[:3].tolist())
    if torch.equal(rates, rates.sort().values):
        self.extra = _parameter(40, 40)


def _copies(self: Any) -> None:
    self.norm = nn.BatchNorm1d(2000)
    nn.init.uniform_(self.norm.running_mean)
    self.copy = copy.deepcopy(self.norm)
    other = nn.Linear(64, 64)
    self.loaded, self.assigned = nn.Linear(64, 64), nn.Linear(64, 64)
    self.loaded.load_state_dict(other.state_dict())
    nn.init.ones_(other.weight)
    self.assigned.load_state_dict(other.state_dict(), assign=True)
    self.skipped = nn.utils.skip_init(nn.Linear, 64, 64)
    nn.init.ones_(self.skipped.weight)
    nn.init.normal_(self.skipped.bias)


def _own_generator(self: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    self.drawn = nn.Parameter(torch.randn(64, 64, generator=generator))
    self.filled = nn.Parameter(torch.empty(64, 64).normal_(generator=generator))


def _default_type(self: Any) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        self.layer = nn.Linear(64, 64)
        self.quotients = nn.Parameter(torch.arange(2000) / torch.full((2000,), 3))
    finally:
        torch.set_default_dtype(before)


CONSTRUCTORS: dict[str, Callable[[Any], None]] = {
    construct.__name__.lstrip("_"): construct
    for construct in (
        _initializers,
        _parametrizations,
        _buffers,
        _layouts,
        _writes,
        _values_on_the_host,
        _copies,
        _own_generator,
        _default_type,
    )
}


def _eager(build: Build) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(SEED)
    return build(), torch.get_rng_state()


def _deferred(build: Build) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(SEED)
    with deferred_initialization():
        model = build()
    return model, torch.get_rng_state()


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by all their names, without a copy."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _differences(model: nn.Module, *, expected: nn.Module) -> list[str]:
    ours, theirs = _tensors(model), _tensors(expected)
    assert ours.keys() == theirs.keys()
    return [
        name
        for name, tensor in ours.items()
        if tensor.is_meta
        or not torch.equal(tensor, theirs[name])
        or tensor.stride() != theirs[name].stride()
        or tensor.dtype != theirs[name].dtype
        or tensor.requires_grad != theirs[name].requires_grad
        or type(tensor) is not type(theirs[name])
    ]


def _check(build: Build, *, reverse: bool = True) -> nn.Module:
    expected, expected_state = _eager(build)
    model, state = _deferred(build)
    assert torch.equal(state, expected_state), "the generator is left as by an eager construction"
    check_can_materialize(model)
    parts = [*(find_blocks(model) or model.children()), model]
    for part in reversed(parts[:-1]) if reverse else parts[:-1]:
        materialize(part, seed=0)
    materialize(model, seed=0)
    assert _differences(model, expected=expected) == []
    identities = len(set(map(id, model.parameters())))
    assert identities == len(set(map(id, expected.parameters()))), "ties stay ties"
    return model


@pytest.fixture
def all_deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors have recipes, too."""
    monkeypatch.setattr(recorder, "FEWEST_ELEMENTS", 1)


@pytest.mark.usefixtures("all_deferred")
@pytest.mark.parametrize("name", MODELS)
def test_small_models_get_their_eager_values(name: str) -> None:
    model, _ = _deferred(MODELS[name])
    assert all(one.is_meta for one in model.parameters() if one.dim())
    _check(MODELS[name])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", LARGE_MODELS)
def test_library_models_get_their_eager_values_in_any_order(name: str, reverse: bool) -> None:
    _check(LARGE_MODELS[name], reverse=reverse)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_what_constructors_do_is_repeated(name: str) -> None:
    _check(lambda: Made(CONSTRUCTORS[name]))


def test_python_values_are_those_of_an_eager_construction() -> None:
    def build() -> nn.Module:
        return Made(_values_on_the_host)

    expected, model = _eager(build)[0], _deferred(build)[0]
    for name in ("rates", "num_large", "largest", "text"):
        assert getattr(model, name) == getattr(expected, name)


def test_numpy_arrays_of_deferred_tensors_cannot_be_written() -> None:
    with deferred_initialization():
        array = torch.zeros(2000).numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_tied_and_aliased_tensors_stay_so() -> None:
    def construct(self: Any) -> None:
        self.embedding = nn.Embedding(50, 40)
        self.head = nn.Linear(40, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("alias", self.embedding.weight.detach())
        self.attribute = torch.arange(2000)
        self.listed = [torch.randn(40, 40)]

    model: Any = _deferred(lambda: Made(construct))[0]
    materialize(model, seed=0)
    expected: Any = _eager(lambda: Made(construct))[0]
    assert model.head.weight is model.embedding.weight
    assert model.alias.data_ptr() == model.embedding.weight.data_ptr()
    assert torch.equal(model.attribute, expected.attribute)
    assert torch.equal(model.listed[0], expected.listed[0])


def test_parameters_stay_the_same_objects() -> None:
    model, _ = _deferred(LARGE_MODELS["vit"])
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    list(model.parameters())[-2].requires_grad_(False)
    materialize(model, seed=0)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert [p.requires_grad for p in model.parameters()].count(False) == 1


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
@pytest.mark.parametrize("name", ["vit", "resnet", "bert"])
def test_a_deferred_model_takes_no_memory(name: str) -> None:
    before = _live_bytes()
    model, _ = _deferred(LARGE_MODELS[name])
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
        model, _ = _deferred(lambda: nn.Sequential(*(nn.Linear(256, 256) for _ in range(20))))
    assert _num_bytes(model.parameters()) > 20 * 256 * 256 * 4
    assert census.made < 2 * 256 * 256 * 4


@pytest.mark.parametrize("name", ["vit", "bert", "transformer"])
def test_a_block_at_a_time_is_in_memory(name: str) -> None:
    model, _ = _deferred(LARGE_MODELS[name])
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

    model, _ = _deferred(lambda: Made(construct))
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
    model = _check(lambda: Made(construct))
    assert model.kept.std() > 1.9  # type: ignore[operator, union-attr]
    model, _ = _deferred(lambda: Made(construct))
    with Calls():
        materialize(model, seed=0)
    assert not any("uniform" in name for name in names)
    assert names.count("aten.normal_.default") == 2, "once for each tensor that depends on it"


def test_recipes_are_dropped_with_their_tensors() -> None:
    gc.collect()
    recipes.drop_unused_recipes()
    before = recipes.num_recipes()
    model, _ = _deferred(LARGE_MODELS["bert"])
    assert recipes.num_recipes() > before
    materialize(model, seed=0)
    assert recipes.num_recipes() == before


def test_what_follows_in_the_program_draws_the_same() -> None:
    def build() -> tuple[nn.Module, torch.Tensor]:
        return LARGE_MODELS["vit"](), torch.randn(7)

    torch.manual_seed(SEED)
    expected = build()[1]
    model, _ = _deferred(LARGE_MODELS["vit"])
    drawn = torch.randn(7)
    state = torch.get_rng_state()
    materialize(model, seed=0)
    assert torch.equal(drawn, expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_generator_states_values_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = _eager(LARGE_MODELS["vit"])
    model, _ = _deferred(LARGE_MODELS["vit"])
    monkeypatch.setattr(
        recipes.Operation, "call", lambda self, args, kwargs: self.func(*args, **kwargs)
    )
    materialize(model, seed=0)
    different = _differences(model, expected=expected)
    assert "blocks.0.attn.qkv.weight" in different


def test_operations_in_another_order_give_other_values() -> None:
    def construct(self: Any) -> None:
        self.value = nn.Parameter(torch.ones(64, 64).mul_(3).add_(1))

    expected, _ = _eager(lambda: Made(construct))
    model: Any = _deferred(lambda: Made(construct))[0]
    recipe = recipes.recipe_of(model.value)
    assert recipe is not None
    _, multiplied, added = recipe.operations
    recipe.operations[1:] = [
        replace(added, number=multiplied.number),
        replace(multiplied, number=added.number),
    ]
    materialize(model, seed=0)
    assert _differences(model, expected=expected) == ["value"]
    assert model.value[0, 0] == 6


CHANGES: dict[str, Callable[[Any], Any]] = {
    "zero_": lambda layer: nn.init.zeros_(layer.weight),
    "torch.nn.init": lambda layer: nn.init.trunc_normal_(layer.weight),
    "data": lambda layer: layer.weight.data.zero_(),
    "double": lambda layer: layer.double(),
    "deepcopy": copy.deepcopy,
    "linear": lambda layer: layer(torch.ones(3, 64)),
    "set data": lambda layer: setattr(layer.weight, "data", torch.ones(64, 64)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_be_lost_outside_is_refused(change: str) -> None:
    model: Any = _deferred(lambda: nn.Linear(64, 64))[0]
    with pytest.raises(UserError, match="no values before"):
        CHANGES[change](model)
    materialize(model, seed=0)
    CHANGES[change](model)
    assert type(model.weight) is nn.Parameter


def test_a_model_is_not_initialized_inside_the_context() -> None:
    with deferred_initialization(), pytest.raises(UserError, match="leave its `with` block"):
        check_can_materialize(nn.Linear(64, 64))


def test_contexts_nest() -> None:
    expected, _ = _eager(LARGE_MODELS["attention"])
    torch.manual_seed(SEED)
    with deferred_initialization(), deferred_initialization():
        model = LARGE_MODELS["attention"]()
    materialize(model, seed=0)
    assert _differences(model, expected=expected) == []


def test_what_cannot_be_repeated_is_refused_by_name() -> None:
    with deferred_initialization(), pytest.raises(UserError, match="batch_norm"):
        nn.BatchNorm1d(2000)(torch.randn(3, 2000))
    with deferred_initialization(), pytest.raises(UserError, match="batch_norm"):
        nn.BatchNorm1d(2)(torch.randn(900, 2))
    with deferred_initialization(), pytest.raises(UserError, match="resolve_conj"):
        torch.ones(64, 64, dtype=torch.complex64).conj().mul_(2)


def test_a_view_that_autograd_follows_is_refused_by_name() -> None:
    def construct(self: Any) -> None:
        self.weight = _parameter(64, 64)
        self.row = self.weight[0]

    model, _ = _deferred(lambda: Made(construct))
    with pytest.raises(UserError, match=r"^weight: .*\.detach\(\)"):
        materialize(model, seed=0)


def _on_meta(build: Build) -> nn.Module:
    with torch.device("meta"):
        return build()


def _plain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(9, 8), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), nn.Linear(8, 9)
    )


def test_a_model_on_the_plain_meta_device_gets_the_same_values_in_any_order() -> None:
    models = [_on_meta(_plain) for _ in range(3)]
    state = torch.get_rng_state()
    for model, order in zip(models, ([0, 1, 2], [2, 1, 0], []), strict=True):
        check_can_materialize(model)
        for index in order:
            materialize(model[index], seed=3)  # type: ignore[index]
        materialize(model, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert _differences(models[0], expected=models[1]) == []
    assert _differences(models[0], expected=models[2]) == []
    weights = [layer.weight for layer in models[0].modules() if isinstance(layer, nn.Linear)]
    assert all(0 < weight.abs().max() <= 8**-0.5 for weight in weights)
    assert not torch.equal(weights[0].flatten(), weights[2].flatten()), "layers differ"


def test_the_seed_decides_the_values_of_a_plain_meta_model() -> None:
    first, second = _on_meta(_plain), _on_meta(_plain)
    for model, seed in ((first, 1), (second, 2)):
        check_can_materialize(model)
        materialize(model, seed=seed)
    assert "0.weight" in _differences(first, expected=second)


def test_plain_meta_ties_stay_ties_and_real_tensors_stay() -> None:
    def build() -> nn.Module:
        model = _plain()
        model[0].weight = nn.Parameter(model[2].weight.detach().t())  # type: ignore[index, operator, union-attr]
        model[2].weight = model[0].weight  # type: ignore[index, union-attr]
        return model

    model: Any = _on_meta(build)
    model[1][0].bias = nn.Parameter(torch.full((8,), 4.0))
    check_can_materialize(model)
    materialize(model, seed=3)
    assert model[0].weight is model[2].weight
    assert torch.equal(model[1][0].bias, torch.full((8,), 4.0))


def test_layers_that_make_no_values_are_refused_by_name() -> None:
    model = _on_meta(lambda: nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(8, 2)))
    with pytest.raises(UserError, match=r"and 1 \(1 in all\).*deferred_initialization"):
        check_can_materialize(model)
    model = _on_meta(LARGE_MODELS["vit"])
    with pytest.raises(UserError, match="deferred_initialization"):
        check_can_materialize(model)


class _Forgetful(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class _Meddling(nn.Linear):
    def __init__(self, *shape: int) -> None:
        super().__init__(*shape)
        self.inner = nn.Linear(4, 4)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "inner"):
            nn.init.zeros_(self.inner.weight)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Forgetful, r"^0: its reset_parameters\(\) leaves bias without"),
        (_Meddling, r"^0: its reset_parameters\(\) also changes the layers inside"),
    ],
)
def test_a_reset_that_does_less_or_more_than_its_layer_is_refused(
    kind: Callable[[int, int], nn.Module], message: str
) -> None:
    model = _on_meta(lambda: nn.Sequential(kind(4, 4)))
    check_can_materialize(model)
    with pytest.raises(UserError, match=message):
        materialize(model, seed=0)


def _initialized(strategy: str, *, deferred: bool) -> dict[str, torch.Tensor]:
    # Ranks build different models: all get that of rank 0.
    def build() -> nn.Module:
        torch.manual_seed(join().rank)
        return LARGE_MODELS["vit"]()

    if deferred:
        with deferred_initialization():
            model = build()
    else:
        model = build()
    config = settings(strategy=strategy, micro_batches=4, precision="float32")
    engine = initialize(model, config=config, loss_fn=cross_entropy)
    return engine.full_state_dict()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_engines_hold_the_eager_values(on_ranks: OnRanks, strategy: str) -> None:
    [expected] = on_ranks(1, _initialized, "replicated", deferred=False)
    for held in on_ranks(2, _initialized, strategy, deferred=True):
        assert held.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in held.items())
