"""What the step needs of a sharding: the same few verbs for every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from msam_scale.ranks import Ranks
from msam_scale.sharding.flat_buffer import FlatBuffer


@dataclass(frozen=True)
class ShardingRequest:
    """What a sharding is built from.

    Attributes:
        model: on its device, in its precision.
        ranks: this process's place among all.
        ascends: some step will perturb; without, no memory is held for it.
        perturbation_group_size: G_p.
        build_optimizer: makes the optimizer of the parameters it is given.
    """

    model: nn.Module
    ranks: Ranks
    ascends: bool
    perturbation_group_size: int
    build_optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


class Sharding(Protocol):
    """Local gradients, perturbation and reduction of one way to lay parameters out on ranks.

    In a step the engine calls `begin_step`; for each micro-batch `ascent_pass`, an ascent rule on
    `ascent_gradient`, and `descent_pass` inside `perturbed`; and once at the end `gradient_norm`,
    `clip` and `apply`. None of these waits for the device.

    Attributes:
        optimizer: steps this rank's shards; the engine sets the learning rates of its groups.
        ascent_gradient: this rank's shard of ∇L_{S_j}(w), until an ascent rule turns it into ε⁽ʲ⁾.
    """

    optimizer: torch.optim.Optimizer
    ascent_gradient: FlatBuffer

    def weights(self) -> Sequence[torch.Tensor]:
        """This rank's shards of the parameters, aligned with `ascent_gradient.views`."""
        ...

    def begin_step(self) -> None:
        """Clears the accumulator of the descent gradients."""
        ...

    def ascent_pass(self) -> AbstractContextManager[None]:
        """Backwards inside add to a cleared ascent gradient.

        On leaving it is summed over the perturbation group.
        """
        ...

    def descent_pass(self, *, last: bool) -> AbstractContextManager[None]:
        """Backwards inside add to the accumulator.

        On leaving the `last` pass of a step it is summed over all groups.
        """
        ...

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Back-propagates; in the `last` backward of a pass gradients leave as they get ready."""
        ...

    def perturbed(self) -> AbstractContextManager[None]:
        """Inside, the parameters are w + `ascent_gradient`; outside w again, bit for bit."""
        ...

    def square_sum(self, flat: torch.Tensor) -> torch.Tensor:
        """Sum of squares over all shards of a tensor laid out like `ascent_gradient.flat`.

        Returns:
            A float64 scalar on the device, the same on every rank of the perturbation group.
        """
        ...

    def gradient_norm(self) -> torch.Tensor:
        """‖·‖₂ of the reduced gradient over all shards, a float64 scalar on the device."""
        ...

    def clip(self, max_norm: float, *, norm: torch.Tensor) -> None:
        """Scales the reduced gradient down to `max_norm`, as `torch.nn.utils.clip_grad_norm_`."""
        ...

    def apply(self, skip: torch.Tensor) -> None:
        """Steps the optimizer unless `skip`, a bool scalar on the device, equal on all ranks."""
        ...

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Whole parameters and buffers under their original names, as CPU tensors on each rank."""
        ...
