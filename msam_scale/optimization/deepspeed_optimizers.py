"""DeepSpeed's own optimizers by the names of `optimizer.name`, for its ZeRO strategies.

DeepSpeed compiles them when they are first made, which takes minutes on a machine without a build
of before.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_pipelines.errors import UserError
from msam_scale.config import Config
from msam_scale.config.deepspeed.engine_settings import engine_settings
from msam_scale.config.deepspeed.zero_keys import offloads_optimizer

_logger = logging.getLogger("msam_scale")

# What compiles the code of an optimizer, by the name of its class.
_BUILDERS = {
    "FusedAdam": "FusedAdamBuilder",
    "DeepSpeedCPUAdam": "CPUAdamBuilder",
    "FusedLion": "FusedLionBuilder",
    "DeepSpeedCPULion": "CPULionBuilder",
    "DeepSpeedCPUAdagrad": "CPUAdagradBuilder",
}
_NO_TOOLKIT = r"MissingCUDA|CUDA_HOME environment variable is not set|nvcc('|: not found|: No such)"
_MOST_CHARACTERS = 300

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


def compile_code_of(cls: type[torch.optim.Optimizer]) -> None:
    """Loads the compiled code of an optimizer of DeepSpeed's, and compiles it where that is due.

    Raises:
        UserError: it cannot be compiled; names what is missing.
    """
    if not cls.__module__.startswith("deepspeed.") or cls.__name__ not in _BUILDERS:
        return
    from deepspeed.ops import op_builder

    builder = getattr(op_builder, _BUILDERS[cls.__name__])()
    if not _is_compiled(builder) and (not dist.is_initialized() or dist.get_rank() == 0):
        _logger.warning(
            "DeepSpeed compiles its %s, which takes minutes, once on this machine.", cls.__name__
        )
    try:
        builder.load(verbose=False)
    except Exception as error:
        raise UserError(
            f"optimizer: DeepSpeed cannot compile its {cls.__name__}: {_what_is_missing(error)}; "
            "torch's adam, adamw and adagrad (torch_adam: true in a DeepSpeed config) need no "
            "compiler"
        ) from error


def _is_compiled(builder: Any) -> bool:
    """Whether the code came with DeepSpeed, or was compiled before."""
    if importlib.util.find_spec(builder.absolute_name()) is not None:
        return True
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    library = f"{builder.name}/{builder.name}*.so"
    return any(next(root.glob(pattern), None) for pattern in (library, f"*/{library}"))


def _what_is_missing(error: Exception) -> str:
    """A compiler's log as a line: what it lacks, or its first complaint."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which("ninja") is None:
        return "ninja is missing (pip install ninja)"
    if shutil.which(compiler) is None:
        return f"the C++ compiler {compiler} is missing (install g++, or name another in CXX)"
    if re.search(_NO_TOOLKIT, f"{type(error).__name__}: {error}"):
        return "the CUDA toolkit is missing (install it, or name its folder in CUDA_HOME)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    complaints = [line for line in lines if "error" in line.lower()]
    # The first line of torch's says only that there was an error.
    found = next(iter([*complaints[1:], *lines]), type(error).__name__)
    return found[:_MOST_CHARACTERS]
