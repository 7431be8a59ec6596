"""The optimizer that the config names, or the one that the caller passes instead."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.config import Config
from msam_scale.config.deepspeed.optimizers import CLIENT_OPTIMIZER, DEEPSPEED_OPTIMIZERS
from msam_scale.config.deepspeed.zero_keys import STAGE_OF
from msam_scale.config.sections.optimization import OptimizerSection
from msam_scale.optimization.deepspeed_optimizers import compile_code_of, deepspeed_optimizer
from msam_scale.optimization.eager import without_compiler
from msam_scale.optimization.optimizers import (
    build_optimizer,
    optimizer_arguments,
    optimizer_class,
)

_logger = logging.getLogger("msam_scale")

_ARGUMENTS = ("lr", "momentum", "weight_decay")

OptimizerSource = (
    torch.optim.Optimizer | type[torch.optim.Optimizer] | Callable[[Any], torch.optim.Optimizer]
)
OptimizerBuilder = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


def optimizer_builder(config: Config, source: OptimizerSource | None = None) -> OptimizerBuilder:
    """What makes the optimizer of the trainable parameters.

    Args:
        config: its `optimizer` section is for torch's optimizers by name and for a class.
        source: goes before the config, as in `deepspeed.initialize`: an optimizer, a class or a
            function of the parameters.

    Raises:
        UserError: the config's optimizer does not exist or would not take its arguments.
    """
    if source is None and config.optimizer.name == CLIENT_OPTIMIZER:
        raise UserError(
            "optimizer.name: the config has no optimizer; pass optimizer= to initialize, or set "
            "optimizer.name"
        )
    if source is None or isinstance(source, type):
        section = config.optimizer
        for name in _ARGUMENTS:
            if name in section.args:
                raise UserError(
                    f"optimizer.args: {name} has a key of its own: set optimizer.{name} instead"
                )
        fixed: dict[str, Any] = {}
        if source is None and section.name in DEEPSPEED_OPTIMIZERS:
            cls, fixed = deepspeed_optimizer(config)
        else:
            cls = optimizer_class(section.name if source is None else source)
        given = {name: getattr(section, name) for name in _ARGUMENTS} | fixed
        arguments = optimizer_arguments(
            cls, given | section.args, of_dtensors=config.sharding.strategy == "fsdp"
        )
        if not STAGE_OF.get(config.sharding.strategy):  # DeepSpeed looks for torch's very classes
            cls = without_compiler(cls)  # type: ignore[arg-type]  # classes do have a hash

        def built(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
            compile_code_of(cls)
            return build_optimizer(parameters, cls=cls, arguments=arguments)

        return built

    def checked(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = source if isinstance(source, torch.optim.Optimizer) else source(parameters)
        _check(optimizer, parameters)
        return optimizer

    return checked


def say_what_is_unused(config: Config, source: OptimizerSource | None) -> None:
    """Warns of settings that have no effect beside an optimizer that is passed."""
    if source is None:
        return
    names = ["name"] if isinstance(source, type) else ["name", *_ARGUMENTS, "args"]
    default = OptimizerSection()
    expected = {name: getattr(default, name) for name in names}
    if config.optimizer.name == CLIENT_OPTIMIZER:
        expected["name"] = CLIENT_OPTIMIZER
    unused = [name for name in names if getattr(config.optimizer, name) != expected[name]]
    if unused:
        _logger.warning(
            "The optimizer given to initialize goes before the config's: %s not used.",
            ", ".join(f"optimizer.{name}" for name in unused),
        )


def _check(optimizer: object, parameters: Sequence[nn.Parameter]) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer: made a {type(optimizer).__name__}, not a torch optimizer")
    optimizer_class(type(optimizer))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if left_out := sum(id(parameter) not in held for parameter in parameters):
        raise UserError(
            f"optimizer: it leaves out {left_out} of {len(parameters)} trainable parameters of the "
            "model; give it all, and freeze with requires_grad_(False) what is not to be trained"
        )
