"""Models of others: blocks computed again, what a forward draws and writes, spectral norm."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from engine_models import cross_entropy, features
from engine_runs import assert_states_close, small_engine
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from msam_scale.errors import UserError
from msam_scale.layers.key_value_cache import KeyValueCaches

CHECKPOINTING = {"activation_checkpointing": True}


def _llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    special = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **special))


def _tokens(*, padded: bool) -> dict[str, torch.Tensor]:
    tokens = torch.randint(3, 40, (8, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    if padded:
        mask[:, 4:] = 0
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens}


def _after_a_step(build: Callable[[], nn.Module], batch: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    engine = small_engine(build(), **changes)
    assert not engine.train_step(batch).skipped
    return engine.full_state_dict()


def test_the_cache_is_off_in_passes_alone() -> None:
    seen = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        output = model(**batch)
        seen.append((model.config.use_cache, output.past_key_values))
        return output.loss  # type: ignore[no-any-return]

    engine = small_engine(_llama(), loss_fn=loss_fn)
    engine.train_step(_tokens(padded=False))
    assert seen == [(False, None)] * 4
    assert engine.module.config.use_cache is True  # type: ignore[union-attr]
    caches = KeyValueCaches(engine.module)
    with pytest.raises(KeyError), caches.off():
        raise KeyError
    assert engine.module.config.use_cache is True  # type: ignore[union-attr]


def test_a_cache_that_is_asked_for_is_refused_where_blocks_are_computed_again() -> None:
    engine = small_engine(_llama(), training=CHECKPOINTING)
    with pytest.raises(UserError, match=r"called with cache=.*without use_cache=True"):
        engine.train_step({**_tokens(padded=True), "use_cache": True})


class Twice(nn.Module):
    """A block whose dropout, which all blocks share, is called twice; and so is the block."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.dropout = dropout

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner = self.dropout(self.first(features)).tanh()
        kept = torch.from_numpy(np.random.rand(8) < 0.7).float() * (random.random() + 0.5)
        return features + self.dropout(self.second(inner)) * kept


class Shared(nn.Module):
    """Runs its two blocks in turn, twice."""

    def __init__(self) -> None:
        super().__init__()
        dropout = nn.Dropout(0.4)
        self.blocks = nn.ModuleList(Twice(dropout) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            for block in self.blocks:
                features = block(features)
        return self.head(features)  # type: ignore[no-any-return]


def test_a_layer_called_twice_is_computed_again() -> None:
    """With the masks of the same call, and the numbers of numpy's and Python's generators."""
    plain = _after_a_step(Shared, features())
    assert_states_close(plain, _after_a_step(Shared, features(), training=CHECKPOINTING))
    assert_states_close(
        plain, _after_a_step(Shared, features(), training={"activation_checkpointing": 2})
    )


class Dense(nn.Module):
    """A layer over all features so far, to whose list it adds its own."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.inner, self.layer = nn.Linear(8 * (place + 1), 8), nn.Linear(8, 8)

    def forward(self, earlier: list[torch.Tensor]) -> torch.Tensor:
        new: torch.Tensor = self.layer(self.inner(torch.cat(earlier, 1)).tanh())
        earlier.append(new)
        return new


class DenselyConnected(nn.Module):
    """Three of them, in the way of DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Dense(place) for place in range(3))
        self.head = nn.Linear(8, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        so_far = [inputs]
        for block in self.blocks:
            new = block(so_far)
        return self.head(new)  # type: ignore[no-any-return]


def test_a_block_that_is_computed_again_finds_its_list_as_it_was() -> None:
    plain = _after_a_step(DenselyConnected, features())
    again = _after_a_step(DenselyConnected, features(), training=CHECKPOINTING)
    assert_states_close(plain, again)


class DrawsOnTheHost(nn.Module):
    """Masks its inputs by numpy's and Python's global generators, as SpecAugment does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)
        self.drawn: list[tuple[float, float]] = []

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.drawn.append((np.random.rand(), random.random()))
        return self.layer(features * self.drawn[-1][0])  # type: ignore[no-any-return]


def test_both_passes_draw_the_same_on_the_host(caplog: pytest.LogCaptureFixture) -> None:
    model = DrawsOnTheHost()
    engine = small_engine(model, loss_fn=cross_entropy, chunk=2)
    np.random.seed(3)
    random.seed(4)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    engine.train_step(features())
    first = list(model.drawn)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index, union-attr]
    # Two chunks a pass: ascent, ascent, descent, descent.
    assert first[:2] == first[2:4]
    assert first[4:6] == first[6:8]
    for numbers in zip(*first, strict=True):  # numpy's, then Python's
        assert len(set(numbers)) == 4
    assert "draws random numbers outside of Dropout" in caplog.text
    engine.train_step(features())
    assert not set(first) & set(model.drawn[8:])


class Writes(nn.Module):
    """A linear layer that does something to itself in its forward."""

    def __init__(self, write: Callable[[Any], None]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)
        self.register_buffer("table", torch.tensor([1.0, float("nan")]))
        self.register_buffer("cache", torch.zeros(0), persistent=False)
        self.write = write

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.write(self)
        return self.layer(features)  # type: ignore[no-any-return]


def _same_value(model: Any) -> None:
    model.table = model.table.clone()
    model.table.copy_(model.table.clone())
    with torch.no_grad():
        model.layer.bias.mul_(1)


def _lazy_cache(model: Any) -> None:
    if not model.cache.numel():
        model.cache = torch.arange(4.0)


def _counts(model: Any) -> None:
    model.table += 1


def _normalises(model: Any) -> None:
    model.layer.weight.data = model.layer.weight.data / model.layer.weight.data.norm()


def _initialises(model: Any) -> None:
    if not model.cache.numel():
        model.cache = torch.ones(1)
        model.layer.weight.data.mul_(0.5)


def _replaces(model: Any) -> None:
    model.layer.bias = nn.Parameter(model.layer.bias.detach().clone())


@pytest.mark.parametrize("write", [_same_value, _lazy_cache])
def test_what_a_model_may_write(write: Callable[[Any], None]) -> None:
    engine = small_engine(
        Writes(write), loss_fn=cross_entropy, algorithm="vanilla", micro_batches=None
    )
    for _ in range(3):
        assert not engine.train_step(features()).skipped


@pytest.mark.parametrize(
    ("write", "name"),
    [(_counts, "table"), (_normalises, "weight"), (_initialises, "weight"), (_replaces, "bias")],
)
def test_what_a_model_must_not_write(write: Callable[[Any], None], name: str) -> None:
    engine = small_engine(Writes(write), loss_fn=cross_entropy)
    with pytest.raises(UserError, match=f"{name}: the model writes to it"):
        engine.train_step(features())


def test_synchronised_batch_norm_is_answered_with_what_batch_norm_does_here() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    )
    with pytest.raises(UserError, match=r"1: SyncBatchNorm .*leave BatchNorm.*norm_samples"):
        small_engine(model)


SPECTRAL: dict[str, Callable[[nn.Module], nn.Module]] = {
    "hook": spectral_norm,
    "parametrization": parametrizations.spectral_norm,
}


def _spectral(kind: str) -> nn.Module:
    layer = SPECTRAL[kind](nn.Linear(8, 8))
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(8, 5))


def _vectors(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for _, buffer in sorted(model.named_buffers())]


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm_moves_its_vectors_once_a_step(kind: str) -> None:
    torch.manual_seed(0)
    model = _spectral(kind).double()
    plain = copy.deepcopy(model)
    engine = small_engine(model, loss_fn=cross_entropy, chunk=1, precision="float64")
    inputs, labels = features()
    for _ in range(3):
        plain.load_state_dict(engine.full_state_dict())
        plain[0](inputs.double())  # type: ignore[index, operator]
        engine.train_step((inputs, labels))
        assert all(
            torch.equal(one, other)
            for one, other in zip(_vectors(model), _vectors(plain), strict=True)
        )
        assert model[0].training  # type: ignore[index, union-attr]
    for bad in (float("nan"), None):  # a step that is skipped, and one that fails
        before = _vectors(model)
        if bad is not None:
            inputs[3] = bad
            assert engine.train_step((inputs, labels)).skipped
        else:
            with pytest.raises(IndexError):
                engine.train_step((inputs, labels + 5))
        for one, other in zip(_vectors(model), before, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm_does_not_depend_on_chunks(kind: str) -> None:
    whole, *others = (
        _after_a_step(
            partial(_spectral, kind),
            features(),
            precision="float64",
            loss_fn=cross_entropy,
            **changes,
        )
        for changes in ({}, {"chunk": 1}, {"training": CHECKPOINTING})
    )
    for other in others:
        assert_states_close(whole, other, rtol=1e-12, atol=1e-14)


def test_spectral_norm_serves_a_secondsmall_engine() -> None:
    model = _spectral("hook")
    for _ in range(2):
        engine = small_engine(model, loss_fn=cross_entropy)
        before = _vectors(model)
        engine.train_step(features())
        assert not torch.equal(before[0], _vectors(model)[0])
