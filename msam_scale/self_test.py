"""A few steps of a tiny model before the real one: does the installed backend do what we rely on?

FSDP2 and DeepSpeed fail silently where their internals change: a gradient that is not cleared, a
weight that is gathered before it was perturbed. Two mSAM steps, compared with plain autograd, tell.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from msam_scale.assembly import assemble
from msam_scale.config import Config
from msam_scale.config.deepspeed.zero_keys import STAGE_OF
from msam_scale.config.plan_checks import shard_group_size
from msam_scale.losses import default_loss
from msam_scale.optimization.from_config import optimizer_builder
from msam_scale.phases import Phases
from msam_scale.ranks import Ranks

_WIDTH, _NUM_CLASSES, _NUM_STEPS, _MOST_SKIPPED = 8, 3, 2, 8
_RHO, _LEARNING_RATE, _CLIP_NORM = 0.5, 0.2, 0.7
# Relative error of the update. What is left out or stale is off by several hundredths and more.
_BOUNDS = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_WIDTH)
        self.linear = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + torch.tanh(self.linear(self.norm(inputs)))


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(), _Layer()])
        self.head = nn.Linear(_WIDTH, _NUM_CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        return self.head(inputs)  # type: ignore[no-any-return]


def check_sharding(config: Config, *, ranks: Ranks) -> None:
    """Runs two steps of the configured strategy and precision on all ranks. Collective.

    Raises:
        RuntimeError: the update is not the one of equation (6); names the installed versions.
    """
    sharding = config.sharding.model_copy(update={"blocks": None})
    # The user draws the same random numbers with and without this test.
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _full_precision_products():
        _check(sharding.model_dump_json(), config.precision, ranks)


@contextmanager
def _full_precision_products() -> Iterator[None]:
    """What the user allows for speed, TF32 above all, is further off than the bound."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _check(sharding: str, precision: str, ranks: Ranks) -> None:
    """Once a process for each strategy: nothing of it depends on the user's model."""
    section = type(Config.model_fields["sharding"].get_default(call_default_factory=True))
    settings = section.model_validate_json(sharding)
    shard_group = shard_group_size(
        settings.strategy, shard_group=settings.shard_group, world_size=ranks.size
    )
    micro_batches = 2 * ranks.size // shard_group
    batch_size = 2 * micro_batches * shard_group
    config = Config.model_validate(
        {
            "objective": {"algorithm": "msam", "micro_batches": micro_batches, "rho": _RHO},
            "batch": {"size": batch_size, "chunk": 1, "check_split": False},
            "optimizer": {"name": "sgd", "lr": _LEARNING_RATE, "clip_norm": _CLIP_NORM},
            "sharding": settings,
            "precision": precision,
        }
    )
    error = _error_of_update(config, ranks=ranks)
    if STAGE_OF.get(settings.strategy):
        gc.collect()  # DeepSpeed's buffers, before the real model needs the memory
    if not error < _BOUNDS[precision]:
        raise RuntimeError(
            f"sharding.strategy: {settings.strategy} in {precision} does not compute mSAM with "
            f"{_versions(settings.strategy)}: the update of a tiny model is off by {error:.1e} "
            f"(bound {_BOUNDS[precision]:.0e}); the engine was verified with torch 2.14.1 and "
            "deepspeed 0.19.8"
        )


def _error_of_update(config: Config, *, ranks: Ranks) -> float:
    phases = Phases(config, world_size=ranks.size, num_steps=None)
    plan = phases.plan(0)
    generator = torch.Generator().manual_seed(0)
    model = _filled(_Tiny(), generator)
    expected = copy.deepcopy(model).double()
    start = torch.nn.utils.parameters_to_vector(expected.parameters()).detach().clone()
    engine = assemble(
        model,
        config=config,
        phases=phases,
        ranks=ranks,
        loss_fn=default_loss(label_smoothing=0.0),
        build_optimizer=optimizer_builder(config),
        num_steps=None,
    )
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    num_done = 0
    for _ in range(_NUM_STEPS + _MOST_SKIPPED):
        # A default device of the user's would not take a generator of the host's.
        inputs = torch.randn(
            plan.batch_size, _WIDTH, generator=generator, dtype=torch.float64, device="cpu"
        )
        labels = torch.randint(_NUM_CLASSES, (plan.batch_size,), generator=generator, device="cpu")
        positions = plan.positions(ranks.rank)
        # A first loss scale that is too high is no fault: the step is left out.
        if engine.train_step((inputs[positions].to(dtype), labels[positions])).skipped:
            continue
        _reference_step(expected, inputs, labels, num_parts=plan.micro_batches)
        num_done += 1
        if num_done == _NUM_STEPS:
            break
    state = engine.full_state_dict()
    trained = torch.cat([state[name].double().flatten() for name, _ in expected.named_parameters()])
    right = torch.nn.utils.parameters_to_vector(expected.parameters()).detach()
    return float((trained - right).norm() / (right - start).norm())


def _filled(model: nn.Module, generator: torch.Generator) -> nn.Module:
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator, device="cpu")
        parameter.data.copy_(values / _WIDTH**0.5)
    return model


def _reference_step(
    model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, num_parts: int
) -> None:
    """Equation (6), gradient clipping and SGD, in float64 with plain autograd."""
    parameters: list[torch.Tensor] = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for part, target in zip(inputs.chunk(num_parts), labels.chunk(num_parts), strict=True):
        ascent = torch.autograd.grad(F.cross_entropy(model(part), target), parameters)
        norm = torch.nn.utils.get_total_norm(ascent)
        weights = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            torch._foreach_add_(parameters, ascent, alpha=_RHO / float(norm))
        descent = torch.autograd.grad(F.cross_entropy(model(part), target), parameters)
        torch._foreach_add_(total, descent, alpha=1 / num_parts)
        with torch.no_grad():
            torch._foreach_copy_(parameters, weights)
    # The small constant is that of torch.nn.utils.clip_grad_norm_.
    factor = min(1.0, _CLIP_NORM / (float(torch.nn.utils.get_total_norm(total)) + 1e-6))
    with torch.no_grad():
        torch._foreach_add_(parameters, total, alpha=-_LEARNING_RATE * factor)


def _versions(strategy: str) -> str:
    if not strategy.startswith("zero"):
        return f"torch {torch.__version__}"
    import deepspeed

    return f"torch {torch.__version__} and deepspeed {deepspeed.__version__}"
