"""Which type parameters are held in and which the model computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError


@dataclass(frozen=True)
class Precision:
    """Parameters, gradients and optimizer in `parameters`, matrix products in `compute`."""

    parameters: torch.dtype
    compute: torch.dtype

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of a forward: autocast where parameters are wider than what computes."""
        if self.compute == self.parameters:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.compute)


PRECISIONS: dict[str, Precision] = {
    "float32": Precision(parameters=torch.float32, compute=torch.float32),
    "float64": Precision(parameters=torch.float64, compute=torch.float64),
    "bfloat16": Precision(parameters=torch.float32, compute=torch.bfloat16),
    "float16": Precision(parameters=torch.float32, compute=torch.float16),
}


def check_parameters(model: nn.Module, *, name: str) -> Precision:
    """The precision of this name, if a model's parameters can be trained in it.

    Raises:
        UserError: a trainable parameter holds fewer bits than a float32 (the perturbation would
            round away: at ρ = 0.05 nine tenths of it), or more than the precision keeps.
    """
    precision = PRECISIONS[name]
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if isinstance(parameter, nn.UninitializedParameter):
            raise UserError(f"{key} has no values yet; run the model once first")
        if parameter.dtype.is_complex:
            raise UserError(f"{key} is {_short(parameter.dtype)}; real parameters work")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"{key} is {_short(parameter.dtype)}: without a float32 copy the perturbation "
                "would round away; pass a float32 model, and precision: bfloat16 to compute in "
                "bfloat16"
            )
        if parameter.dtype.itemsize > precision.parameters.itemsize:
            raise UserError(
                f"{key} is {_short(parameter.dtype)}, which precision: {name} would round; "
                "use precision: float64, or model.float() if you mean it"
            )
    return precision


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
