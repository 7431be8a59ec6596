"""Short training runs with the engine, described by plain values so that ranks can receive them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from engine_models import BATCH_SIZE, build_model, cross_entropy, mini_batch
from torch import nn

from msam_scale import sharding
from msam_scale.engine import Engine
from msam_scale.initialization import initialize
from msam_scale.ranks import join
from msam_scale.sharding.replicated import ReplicatedSharding

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.float32,
    "float16": torch.float32,
}
SGD: dict[str, Any] = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
# The key's bias in softmax attention has a gradient of exactly zero, up to rounding. AdamW divides
# that noise by its own size plus eps; an eps far above the noise (1e-17 in float64, 1e-9 in
# float32) and far below the other gradients keeps it noise.
ADAMW: dict[str, Any] = {
    "name": "adamw",
    "lr": 0.01,
    "weight_decay": 0.05,
    "args": {"eps": 1e-5},
}


def settings(
    *,
    algorithm: str = "msam",
    micro_batches: int | None = None,
    rho: float = 0.1,
    chunk: int | None = None,
    norm_samples: int | None = None,
    optimizer: Mapping[str, Any] | None = None,
    clip_norm: float | None = None,
    precision: str = "float64",
    batch_size: int = BATCH_SIZE,
    max_skipped_steps: int = 10,
    seed: int = 7,
    strategy: str = "replicated",
    check_split: bool = False,
    **sharding: Any,
) -> dict[str, Any]:
    """A config for `initialize`, from the few settings that tests vary."""
    objective: dict[str, Any] = {"algorithm": algorithm, "max_skipped_steps": max_skipped_steps}
    if algorithm != "vanilla":
        objective["rho"] = rho
    if micro_batches is not None:
        objective["micro_batches"] = micro_batches
    return {
        "run": {"seed": seed},
        "objective": objective,
        "batch": {
            "size": batch_size,
            "chunk": chunk,
            "norm_samples": norm_samples,
            "check_split": check_split,
        },
        "optimizer": {**(SGD if optimizer is None else optimizer), "clip_norm": clip_norm},
        "precision": precision,
        "sharding": {"strategy": strategy, **sharding},
    }


def small_engine(model: nn.Module, *, training: Any = None, **changes: Any) -> Engine:
    """An engine of the model for mini-batches of eight samples; `changes` go to `settings`."""
    loss_fn, optimizer = changes.pop("loss_fn", None), changes.pop("optimizer", None)
    arguments = {"micro_batches": 2, "batch_size": 8, "precision": "float32", **changes}
    if optimizer is not None:
        arguments["optimizer"] = {"name": "client"}
    config = settings(**arguments) | {"training": training or {}}
    return initialize(model.train(), config=config, loss_fn=loss_fn, optimizer=optimizer)


def assert_states_close(one: Any, other: Any, **tolerance: float) -> None:
    """Compares all tensors of two state dicts."""
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


@dataclass(frozen=True)
class Run:
    """A run of `steps` steps of the named model on `mini_batch(0), mini_batch(1), …`.

    Attributes:
        config: for `initialize`.
        model: one of `engine_models.MODELS`.
        steps: optimizer steps.
        dict_batch: batches are dicts, and the loss is the one that the model returns.
    """

    config: dict[str, Any]
    model: str = "odd"
    steps: int = 10
    dict_batch: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run led to on one rank.

    Attributes:
        state: parameters and buffers after it.
        losses: the reported loss of each step.
        gradient_norms: the reported norm of each step.
        ascent_norms: the reported mean ascent norm of each step.
    """

    state: dict[str, torch.Tensor]
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    ascent_norms: list[float] = field(default_factory=list)


def engine_for(run: Run, **arguments: Any) -> Engine:
    """The run's engine. Ranks build different weights: the engine has to hand out rank 0's."""
    model = build_model(run.model, seed=join().rank)
    loss_fn = None if run.dict_batch else cross_entropy
    return initialize(model, config=run.config, **{"loss_fn": loss_fn, **arguments})


def own_part(engine: Engine, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The samples of a whole mini-batch that this rank supplies."""
    positions = engine.plan.positions(engine.ranks.rank)
    return tuple(tensor[positions] for tensor in batch)


def outcome_of(run: Run, **arguments: Any) -> Outcome:
    """Trains with the engine on this rank."""
    engine = engine_for(run, **arguments)
    dtype = _DTYPES[run.config["precision"]]

    def batch(step: int) -> Any:
        images, labels = own_part(engine, mini_batch(step, dtype=dtype))
        return {"images": images, "labels": labels} if run.dict_batch else (images, labels)

    steps = [engine.train_step(batch(step)) for step in range(run.steps)]
    assert not any(step.skipped for step in steps)
    return Outcome(
        state=engine.full_state_dict(),
        losses=[step.loss for step in steps],
        gradient_norms=[step.grad_norm for step in steps],
        ascent_norms=[step.ascent_norm for step in steps],
    )


def outcomes_of(runs: list[Run]) -> list[Outcome]:
    """Trains one run after the other on this rank."""
    return [outcome_of(run) for run in runs]


def relative_difference(
    state: Mapping[str, torch.Tensor],
    *,
    expected: Mapping[str, torch.Tensor],
    start: Mapping[str, torch.Tensor],
    among: Callable[[str], bool] = lambda name: True,
) -> float:
    """‖state - expected‖ / ‖expected - start‖ over all floating-point entries chosen by name."""
    assert state.keys() == expected.keys()
    names = [name for name in expected if among(name) and expected[name].is_floating_point()]

    def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
        differences = [(one[name].double() - other[name].double()).flatten() for name in names]
        return float(torch.cat(differences).norm())

    return distance(state, expected) / distance(expected, start)


def with_small_buckets(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Calls the function while shardings cut their gradients into buckets of 400 bytes."""
    whole = sharding.STRATEGIES["replicated"]
    sharding.STRATEGIES["replicated"] = partial(ReplicatedSharding, bucket_bytes=400)
    try:
        return function(*arguments, **named)
    finally:
        sharding.STRATEGIES["replicated"] = whole
