"""DeepSpeed's own optimizers by the names of `optimizer.name`, for its ZeRO strategies.

DeepSpeed compiles them when they are first made, which takes minutes on a machine without a build
of before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from msam_scale.config import Config
from msam_scale.config.deepspeed.engine_settings import engine_settings
from msam_scale.config.deepspeed.zero_keys import offloads_optimizer

Made = tuple[type[torch.optim.Optimizer], dict[str, Any]]


def _adam(offloads: bool, *, decoupled: bool) -> Made:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    if offloads:
        return DeepSpeedCPUAdam, {"adamw_mode": decoupled}
    return FusedAdam, {"adam_w_mode": decoupled}


def _lion(offloads: bool) -> Made:
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion

    return (DeepSpeedCPULion if offloads else FusedLion), {}


def _adagrad(_offloads: bool) -> Made:
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad

    return DeepSpeedCPUAdagrad, {}


_BY_NAME: dict[str, Callable[[bool], Made]] = {
    "deepspeed_adam": lambda offloads: _adam(offloads, decoupled=False),
    "deepspeed_adamw": lambda offloads: _adam(offloads, decoupled=True),
    "deepspeed_lion": _lion,
    "deepspeed_adagrad": _adagrad,
}


def deepspeed_optimizer(config: Config) -> Made:
    """The class that `optimizer.name` stands for, on the host where its state is offloaded.

    Returns:
        The class, and the arguments that the name itself fixes.
    """
    settings = engine_settings(config, world_size=1, chunk_samples=1)
    return _BY_NAME[config.optimizer.name](offloads_optimizer(settings["zero_optimization"]))
