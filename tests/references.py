"""Trajectories of the reference in float64, each computed once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from engine_models import build_model, mini_batch
from reference import Reference, reference_run


def build_optimizer(name: str) -> Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]:
    """Makes the optimizer of the settings `SGD` or `ADAMW`."""

    def build(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        if name == "sgd":
            return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.05, eps=1e-5)

    return build


@cache
def reference_for(
    model: str,
    micro_batches: int,
    *,
    optimizer: str = "sgd",
    clip_norm: float | None = None,
    norm_samples: int | None = None,
    rho: float | tuple[float, ...] | None = 0.1,
    steps: int = 10,
    normalizes: bool = True,
    algorithms: tuple[str, ...] | None = None,
) -> Reference:
    """So many steps on `mini_batch(0), mini_batch(1), …`, with the settings of `SGD` or `ADAMW`."""
    return reference_run(
        build_model(model).double(),
        mini_batch=mini_batch,
        steps=steps,
        micro_batches=micro_batches,
        rho=rho,
        build_optimizer=build_optimizer(optimizer),
        clip_norm=clip_norm,
        norm_samples=norm_samples,
        seed=7,
        normalizes=normalizes,
        algorithms=algorithms,
    )
