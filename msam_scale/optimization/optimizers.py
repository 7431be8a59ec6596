"""torch's optimizers by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from data_pipelines.registry import lookup
from msam_scale.config.suggestions import way_elsewhere

# Needs a closure that re-evaluates the loss, or sparse gradients; the engine offers neither.
_UNUSABLE = frozenset({"lbfgs", "sparseadam"})
_FUSED_ON_DTENSORS = (torch.optim.Adam, torch.optim.AdamW)


def _by_name() -> dict[str, type[torch.optim.Optimizer]]:
    classes = (getattr(torch.optim, name) for name in dir(torch.optim))
    return {
        cls.__name__.lower(): cls
        for cls in classes
        if isinstance(cls, type)
        and issubclass(cls, torch.optim.Optimizer)
        and cls is not torch.optim.Optimizer
        and cls.__name__.lower() not in _UNUSABLE
    }


def optimizer_class(name: str | type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The class of `torch.optim` with this name in any case, or the class itself.

    Raises:
        UserError: torch has no such optimizer, or it cannot be driven by gradients alone.
    """
    plain = name.lower() if isinstance(name, str) else name.__name__.lower()
    if plain in _UNUSABLE:
        raise UserError(
            f"optimizer.name: {plain!r} needs closures or sparse gradients; choose one of "
            f"{', '.join(sorted(_by_name()))}"
        )
    if isinstance(name, type):
        return name
    try:
        return lookup(_by_name(), plain, kind="optimizer")
    except UserError as error:
        raise UserError(f"optimizer.name: {error}") from None


def optimizer_arguments(
    cls: type[torch.optim.Optimizer], arguments: Mapping[str, Any], *, of_dtensors: bool = False
) -> dict[str, Any]:
    """Those arguments that are not None, checked against the constructor.

    A fused implementation is chosen where there is one: it can leave a step out on the device.

    Args:
        cls: the optimizer.
        arguments: by name.
        of_dtensors: it steps FSDP2's shards, for which torch has few fused implementations.

    Raises:
        UserError: the constructor takes no argument of this name, or it cannot be fused.
    """
    parameters = inspect.signature(cls).parameters
    accepted = list(parameters)[1:]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in given:
        if name not in accepted and not takes_any:
            section = (
                "optimizer" if name in ("lr", "momentum", "weight_decay") else "optimizer.args"
            )
            way = way_elsewhere(name) or f"it takes {', '.join(accepted)}"
            raise UserError(
                f"{section}.{name}: {cls.__name__} has no such argument and would ignore it; {way}"
            )
    has_fused = not of_dtensors or cls in _FUSED_ON_DTENSORS
    if given.get("fused") and not has_fused:
        raise UserError(
            f"optimizer.args.fused: torch has no fused {cls.__name__} of sharded parameters; "
            "leave it out"
        )
    if (
        has_fused
        and "fused" in accepted
        and not {"fused", "foreach", "differentiable"} & given.keys()
    ):
        given["fused"] = True
    return given


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    cls: type[torch.optim.Optimizer],
    arguments: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """Constructs the optimizer from arguments that `optimizer_arguments` has checked.

    Raises:
        UserError: it refuses an argument or a parameter; its own words are in the message.
    """
    try:
        return cls(parameters, **arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"optimizer: {cls.__name__} refuses these settings: {error}") from error
