"""Models built with and without memory, and what tells whether they hold the same values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from msam_scale.layers.blocks import find_blocks
from msam_scale.materialization import (
    check_can_materialize,
    deferred_initialization,
    materialize,
)

Build = Callable[[], nn.Module]
SEED = 5


class Made(nn.Module):
    """A module whose constructor is a function."""

    def __init__(self, construct: Callable[[Any], None]) -> None:
        super().__init__()
        construct(self)


def parameter(*shape: int) -> nn.Parameter:
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
    self.first, self.second = parameter(64, 64), parameter(64, 64)
    self.second.data.copy_(self.first.data)
    self.first.data[3] = 7
    self.first.data.t_().mul_(2)
    self.first.data[self.first.data < 0] = 0.5
    for piece in self.second.data.chunk(3):
        nn.init.normal_(piece, std=0.02)
    torch._foreach_mul_([self.first.data, self.second.data], 2.0)
    self.small = parameter(5)
    torch._foreach_add_([self.small.data, self.first.data], 1.0)
    product = torch.empty(64, 64)
    assert torch.mul(self.first.data, self.second.data, out=product) is product
    self.product = nn.Parameter(product)
    self.product.data = self.product.data + torch.from_numpy(np.eye(64, dtype=np.float32))
    self.bernoulli = nn.Parameter(torch.bernoulli(torch.rand(64, 64)))
    self.normal = nn.Parameter(torch.normal(torch.randn(64, 64), torch.rand(64, 64)))


def values_on_the_host(self: Any) -> None:
    rates = torch.linspace(0, 1, 2000)
    self.rates = rates.tolist()
    self.num_large = int((rates > 0.7).sum())
    self.largest = rates.max().item()
    self.chosen = parameter(len(rates[rates > 0.4]), 2)
    self.from_numpy = nn.Parameter(torch.from_numpy(rates.numpy() * 2))
    self.text = repr(rates[:3].tolist())
    if torch.equal(rates, rates.sort().values):
        self.extra = parameter(40, 40)


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
        values_on_the_host,
        _copies,
        _own_generator,
        _default_type,
    )
}


def eager(build: Build) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(SEED)
    return build(), torch.get_rng_state()


def deferred(build: Build) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(SEED)
    with deferred_initialization():
        model = build()
    return model, torch.get_rng_state()


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by all their names, without a copy."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def differences(model: nn.Module, *, expected: nn.Module) -> list[str]:
    ours, theirs = tensors(model), tensors(expected)
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


def check_same_values(build: Build, *, reverse: bool = True) -> nn.Module:
    expected, expected_state = eager(build)
    model, state = deferred(build)
    assert torch.equal(state, expected_state), "the generator is left as by an eager construction"
    check_can_materialize(model)
    parts = [*(find_blocks(model) or model.children()), model]
    for part in reversed(parts[:-1]) if reverse else parts[:-1]:
        materialize(part, seed=0)
    materialize(model, seed=0)
    assert differences(model, expected=expected) == []
    identities = len(set(map(id, model.parameters())))
    assert identities == len(set(map(id, expected.parameters()))), "ties stay ties"
    return model
