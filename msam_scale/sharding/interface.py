"""What the step needs of a sharding: the same few verbs for every backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from msam_scale.batch_plan import BatchPlan
from msam_scale.config import Config
from msam_scale.precision import Precision
from msam_scale.ranks import Ranks
from msam_scale.sharding.flat_buffer import FlatBuffer
from msam_scale.sharding.pieces import Piece
from msam_scale.sharding.saved import SavedTensors


@dataclass(frozen=True)
class ShardingRequest:
    """What a sharding is built from.

    Attributes:
        model: with its keyed layers, on any device; parameters on the meta device have a recipe
            (`materialization`) and get their values block by block.
        blocks: the model's repeated layers, which are gathered, checkpointed and compiled one by
            one.
        ranks: this process's place among all.
        plan: the layout of a mini-batch, with G_s and G_p.
        precision: of parameters and of what computes with them.
        config: all settings; a sharding reads `sharding`, `precision` and `optimizer`.
        build_optimizer: makes the optimizer of the parameters it is given.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    ranks: Ranks
    plan: BatchPlan
    precision: Precision
    config: Config
    build_optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]

    @property
    def ascends(self) -> bool:
        """Whether some step will perturb; without, no memory is held for it."""
        return self.config.objective.ascends


class Sharding(Protocol):
    """Local gradients, perturbation and reduction of one way to lay parameters out on ranks.

    In a step the engine calls `begin_step`; for each micro-batch `ascent_pass`, an ascent rule on
    `ascent_gradient`, and `descent_pass` inside `perturbed`; and once at the end `gradient_norm`,
    `clip` and `apply`.

    Attributes:
        model: what a loss function calls: the model, or the wrapper that the backend needs.
        optimizer: steps this rank's shards; the engine sets the learning rates of its groups.
        ascent_gradient: this rank's shard of ∇L_{S_j}(w), float32 or wider, until an ascent rule
            turns it into ε⁽ʲ⁾.
        forward_is_collective: ranks that run a forward wait for each other, so that all have to
            run equally many, in evaluation as well.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ascent_gradient: FlatBuffer
    forward_is_collective: bool

    def weights(self) -> Sequence[torch.Tensor]:
        """This rank's shards of w, in full precision, aligned with `ascent_gradient.views`."""
        ...

    def held_whole(self) -> Sequence[bool]:
        """For each of `weights()`: it is whole on every rank, and not this rank's part alone."""
        ...

    def weights_written(self) -> None:
        """Forwards compute with what has been written into `weights()`, between two passes."""
        ...

    def hold_ascent_gradient(self) -> None:
        """Makes `ascent_gradient` and `ascent_pass` usable where no step ascends, at its memory."""
        ...

    def follow_plan(self, plan: BatchPlan) -> None:
        """From the next step on micro-batches are spread over G_p ranks of `plan`. Collective."""
        ...

    def begin_step(self) -> None:
        """Clears the accumulator of the descent gradients."""
        ...

    def ascent_pass(self) -> AbstractContextManager[None]:
        """Backwards inside add to a cleared ascent gradient.

        On leaving it is summed over the perturbation group, and free of any loss scale.
        """
        ...

    def descent_pass(self, *, last: bool) -> AbstractContextManager[None]:
        """Backwards inside add to the accumulator.

        On leaving the `last` pass of a step it is summed over all groups, and free of any loss
        scale.
        """
        ...

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Back-propagates; in the `last` backward of a pass gradients leave as they get ready."""
        ...

    def perturbation_fidelity(self) -> torch.Tensor:
        """How much of ε⁽ʲ⁾ survives in the type that computes; called before `perturbed`.

        Returns:
            ⟨c(w + ε) - c(w), ε⟩ / ‖ε‖² over all shards, with c the rounding to that type: a
            float64 scalar on the device, 1 where nothing is lost.
        """
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

    def scale_gradient(self, factor: torch.Tensor) -> None:
        """Multiplies the reduced gradient by a scalar on the device."""
        ...

    def apply(self, skip: torch.Tensor) -> None:
        """Steps the optimizer unless `skip`, a bool scalar on the device, equal on all ranks.

        A loss scale falls after a skipped step and grows after enough others.
        """
        ...

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Whole parameters and buffers under their original names, as CPU tensors. Collective."""
        ...

    def model_pieces(self) -> list[Piece]:
        """This rank's part of what all ranks save of the model: `model/NAME`. Collective.

        All ranks together have each element of parameters, in full precision, and buffers once.
        """
        ...

    def optimizer_pieces(self) -> list[Piece]:
        """The same of the optimizer's state: `optimizer/PARAMETER//STATE`. Collective.

        Plain numbers are tensors without dimensions.
        """
        ...

    def load(self, weights: SavedTensors, optimizer_state: SavedTensors | None) -> None:
        """Takes what the pieces of all ranks make up, saved at any layout. Collective.

        Without `optimizer_state` the optimizer stays as it is.

        Settings of the optimizer, such as the learning rate, stay as they are.

        Raises:
            UserError: the tensors are another model's or another optimizer's.
        """
        ...

    def counters(self) -> dict[str, float]:
        """What else a checkpoint keeps: the loss scale and its age, where there is one."""
        ...

    def load_counters(self, counters: Mapping[str, float]) -> None:
        """Takes what `counters` gave, also that of a backend without a loss scale."""
        ...
