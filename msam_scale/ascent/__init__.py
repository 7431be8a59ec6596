"""Ascent rules: how a micro-batch's gradient becomes its perturbation. One file a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from data_pipelines.errors import UserError
from data_pipelines.registry import lookup
from msam_scale.ascent.sam import sam
from msam_scale.ascent.unnormalized import unnormalized
from msam_scale.sharding.flat_buffer import FlatBuffer


class AscentRule(Protocol):
    """Turns the local shard of g_j into that of ε⁽ʲ⁾ in place and returns ‖g_j‖₂.

    Arguments are the gradient, the weights aligned with its views, the radius ρ, and a function
    that sums squares over all shards of a tensor laid out like `gradient.flat`.
    """

    def __call__(
        self,
        gradient: FlatBuffer,
        weights: Sequence[torch.Tensor],
        *,
        rho: float,
        square_sum: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Returns ‖g_j‖₂ over all parameters, a float64 scalar on the device."""
        ...


ASCENT_RULES: dict[str, AscentRule] = {
    "sam": sam,
    "unnormalized": unnormalized,
}


def ascent_rule(name: str) -> AscentRule:
    """The rule of this name.

    Raises:
        UserError: there is none; names those that are.
    """
    try:
        return lookup(ASCENT_RULES, name, kind="ascent rule")
    except UserError as error:
        raise UserError(f"objective.ascent: {error}") from None
