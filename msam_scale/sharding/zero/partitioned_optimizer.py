"""ZeRO-1 and ZeRO-2: every rank holds the weights, DeepSpeed shards what steps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from msam_scale.optimization import step_unless
from msam_scale.sharding.gradient_reduction import BUCKET_BYTES
from msam_scale.sharding.interface import ShardingRequest
from msam_scale.sharding.norms import square_sum
from msam_scale.sharding.pieces import Piece
from msam_scale.sharding.placement import place
from msam_scale.sharding.replicated import ReplicatedSharding
from msam_scale.sharding.saved import SavedTensors
from msam_scale.sharding.zero import private_api
from msam_scale.sharding.zero.group_state import GroupState
from msam_scale.sharding.zero.start import join_deepspeed, settings_for_deepspeed, start_engine


class OptimizerPartitioning(ReplicatedSharding):
    """Passes as with replicated parameters; one reduction and the step are DeepSpeed's.

    Weights are float32 on every rank, whatever computes: a perturbation of a narrower copy would
    round away, and its micro-batch is this rank's alone. So DeepSpeed sees a float32 model, and
    autocast computes in the narrow type.

    Raises:
        UserError: the model has no trainable parameter, or the optimizer cannot be sharded.
    """

    def __init__(self, request: ShardingRequest, *, bucket_bytes: int = BUCKET_BYTES) -> None:
        super().__init__(request, bucket_bytes=bucket_bytes)
        self._descent_group = None  # DeepSpeed sums the descent
        self._reduced: list[torch.Tensor] = []
        private_api.destroy_with(self, self._engine)
        private_api.hold_back_reduction(self._engine)
        self._state = GroupState(self._engine, self.model)

    def _lay_out(self, request: ShardingRequest) -> None:
        place(request.model, request=request, contiguous=True)
        join_deepspeed(request)
        self._engine = start_engine(
            request,
            parameters=[p for p in request.model.parameters() if p.requires_grad],
            settings=settings_for_deepspeed(request),
        )

    def _make_optimizer(self, request: ShardingRequest) -> torch.optim.Optimizer:
        return private_api.base_optimizer(self._engine)

    @contextmanager
    def descent_pass(self, *, last: bool) -> Iterator[None]:
        """Gradients go to the accumulator; leaving the last, DeepSpeed reduces it."""
        with self._gradients_in(self._accumulator, self._descent_gradients, group=None):
            yield
        if not last:
            return
        if self._loss_scale is not None:
            self._loss_scale.unscale(self._accumulator.flat)
        # DeepSpeed averages over ranks, and the engine's losses are made for sums.
        self._accumulator.flat.mul_(self._ranks.size)
        # Objects of their own: DeepSpeed points those it gets into its buckets.
        self._install([view.detach() for view in self._accumulator.views])
        private_api.reduce_gradients(self._engine)
        self._reduced = private_api.reduced_gradients(self._engine)

    def gradient_norm(self) -> torch.Tensor:
        """‖·‖₂ of the reduced gradient, of which each rank has a piece."""
        total = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        for piece in self._reduced:
            total += square_sum(piece.flatten()).to(total.device)
        if self._ranks.world is not None:
            dist.all_reduce(total, group=self._ranks.world)
        return total.sqrt()

    def scale_gradient(self, factor: torch.Tensor) -> None:
        """Multiplies this rank's pieces in place."""
        for piece in self._reduced:
            piece.mul_(factor.to(piece.device))

    def apply(self, skip: torch.Tensor) -> None:
        """Lets DeepSpeed step and gather the weights, unless `skip`.

        Where it offloads, it looks at the gradient's norm on the host, and so does this.
        """
        self._reduced = []
        skips = private_api.offloads_optimizer(self._engine) and bool(skip)
        if skips or not step_unless(self.optimizer, skip, step=self._engine.step):
            private_api.drop_reduced_gradients(self._engine)
        if self._loss_scale is not None:
            self._loss_scale.update(skip)

    def optimizer_pieces(self) -> list[Piece]:
        """This rank's partition of the optimizer's state."""
        return self._state.optimizer_pieces(self.optimizer, ranks=self._ranks)

    def load(self, weights: SavedTensors, optimizer_state: SavedTensors | None) -> None:
        """Takes whole weights and this rank's partition of the optimizer's state."""
        self._state.load(self.optimizer, weights, optimizer_state)
