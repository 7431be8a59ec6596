"""The engine's steps on a family's model against the plain reference's."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import msam_scale
from msam_scale.layers.blocks import find_blocks
from tests.model_families.family import BATCH_SIZE, MICRO_BATCHES, WHOLE, Batch, Family
from tests.reference import reference_run
from tests.reference_layers import draw_mask

BOUND = 1e-9
_RHO, _SEED = 0.05, 3
_SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
# Added to weights that begin as zeros or ones, and would hide what lies behind them.
_NOISE = 0.05
# A large model does one step, others two.
_LARGE = 500_000


@dataclass(frozen=True)
class Result:
    """What came out for a family.

    Attributes:
        num_parameters: of the small model.
        num_blocks: computed again with activation checkpointing.
        plain: ‖engine - reference‖ / ‖reference - start‖ over all weights and statistics.
        checkpointed: the same with activation checkpointing.
        by_sample: all random masks are keyed by the sample: the reference runs whole micro-batches
            where the engine runs chunks. Otherwise it runs chunks as well.
        refusal: what the engine said instead of training.
    """

    num_parameters: int
    num_blocks: int
    plain: float = float("nan")
    checkpointed: float = float("nan")
    by_sample: bool = False
    refusal: str | None = None

    @property
    def is_exact(self) -> bool:
        """Both ways, within the bound."""
        return self.plain < BOUND and self.checkpointed < BOUND


# By which models ask for float32.
_NARROWING = [
    *((torch.Tensor, name) for name in ("float", "to", "softmax", "log_softmax")),
    (torch, "softmax"),
]


@contextmanager
def _float64_kept() -> Iterator[None]:
    """Leaves float64 as it is where a model asks for float32 (softmax, norms, its loss).

    In float32 two orders of summation differ by 1e-7, and that is all one would see.
    """
    originals = [getattr(owner, name) for owner, name in _NARROWING]
    try:
        for (owner, name), original in zip(_NARROWING, originals, strict=True):
            setattr(owner, name, _widened(original))
        yield
    finally:
        for (owner, name), original in zip(_NARROWING, originals, strict=True):
            setattr(owner, name, original)


def _widened(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(tensor: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if not arguments and not named and tensor.dtype is not torch.float32:
            return tensor.double()  # for `float`, also of positions and masks
        if tensor.dtype is not torch.float64:
            return function(tensor, *arguments, **named)
        named = {name: _wide(value) for name, value in named.items()}
        return function(tensor, *map(_wide, arguments), **named)

    return call


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def compare(family: Family) -> Result:
    """Trains the family's model: the engine twice, and the reference."""
    with _float64_kept():
        return _compared(family)


def _compared(family: Family) -> Result:
    model = _built(family)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_blocks = len(find_blocks(model))
    steps = 1 if num_parameters > _LARGE or family.chunk == WHOLE else 2
    try:
        states = [
            _engine_state(copy.deepcopy(model), family, steps=steps, checkpointed=again)
            for again in (False, True)
        ]
    except msam_scale.UserError as error:
        return Result(num_parameters, num_blocks, refusal=str(error))
    for chunk in (None, family.chunk):
        expected = reference_run(
            copy.deepcopy(model),
            mini_batch=lambda step: _batch(family, step),
            steps=steps,
            micro_batches=MICRO_BATCHES,
            rho=_RHO,
            build_optimizer=lambda parameters: torch.optim.SGD(parameters, **_SGD),
            norm_samples=family.chunk,
            seed=_SEED,
            loss=lambda model, batch: (_mean_loss(model, batch), family.weight(batch)),
            chunk=chunk,
        )
        draw_mask.cache_clear()
        plain, checkpointed = (
            _difference(state, expected.state, start=expected.start) for state in states
        )
        if plain < BOUND or family.chunk == WHOLE:
            break
    gc.collect()
    return Result(num_parameters, num_blocks, plain, checkpointed, by_sample=chunk is None)


def _built(family: Family) -> nn.Module:
    """In float64 and training mode."""
    torch.manual_seed(0)
    model = family.build().double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=_NOISE)
    return model


def _batch(family: Family, step: int) -> Batch:
    return family.batch(torch.Generator().manual_seed(100 + step))


def _engine_state(
    model: nn.Module, family: Family, *, steps: int, checkpointed: bool
) -> dict[str, torch.Tensor]:
    has_norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    config: dict[str, Any] = {
        "run": {"seed": _SEED},
        "objective": {"algorithm": "msam", "micro_batches": MICRO_BATCHES, "rho": _RHO},
        "batch": {
            "size": BATCH_SIZE,
            "chunk": family.chunk,
            "norm_samples": family.chunk if has_norms else None,
        },
        "optimizer": {"name": "sgd", **_SGD},
        "precision": "float64",
        "training": {"activation_checkpointing": checkpointed},
    }
    engine = msam_scale.initialize(model, config=config)
    for step in range(steps):
        assert not engine.train_step(_batch(family, step)).skipped
    return engine.full_state_dict()


def _mean_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    if isinstance(batch, dict):
        loss: torch.Tensor = model(**batch).loss
        return loss
    return F.cross_entropy(model(batch[0]), batch[1])


def _difference(
    state: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    *,
    start: Mapping[str, torch.Tensor],
) -> float:
    assert state.keys() == expected.keys()
    names = [name for name, tensor in expected.items() if tensor.is_floating_point()]

    def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
        return float(torch.cat([(one[name] - other[name]).flatten() for name in names]).norm())

    return distance(state, expected) / distance(expected, start)
