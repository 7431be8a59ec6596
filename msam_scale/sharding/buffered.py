"""What strategies share whose backward leaves gradients in tensors that the engine owns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.distributed as dist
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.batch_plan import BatchPlan
from msam_scale.optimization import step_unless
from msam_scale.sharding.fidelity import perturbation_fidelity
from msam_scale.sharding.flat_buffer import FlatBuffer
from msam_scale.sharding.frozen import FrozenParameters
from msam_scale.sharding.gradient_reduction import BUCKET_BYTES, GradientReduction
from msam_scale.sharding.interface import ShardingRequest
from msam_scale.sharding.loss_scale import LossScale
from msam_scale.sharding.norms import square_sum
from msam_scale.sharding.pieces import Piece
from msam_scale.sharding.saved import SavedTensors
from msam_scale.sharding.state import (
    full_state_dict,
    load_state,
    model_state,
    optimizer_state,
    pieces_of,
)


class BufferedSharding(ABC):
    """Two gradient-sized buffers, the accumulator and the ascent gradient, and pointer swaps.

    A backward adds in place to whatever tensor `parameter.grad` is, so ascent and descent differ
    only in whose views are installed there. A strategy lays the parameters out before it calls
    `__init__`, and says how a parameter's part on this rank is reached.

    Args:
        request: of a model that is laid out already.
        shard_group_size: G_s.
        bucket_bytes: bytes of one all-reduce between shard groups.

    Raises:
        UserError: the model has no trainable parameter.
    """

    forward_is_collective = False

    def __init__(
        self,
        request: ShardingRequest,
        *,
        shard_group_size: int,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.model: nn.Module = request.model
        # Tied weights are one parameter and appear once.
        self._all_parameters = list(request.model.parameters())
        self._frozen = FrozenParameters(request.model)
        self._parameters = self._trainable()
        if not self._parameters:
            raise UserError("the model has no trainable parameter: every requires_grad is False")
        self._ranks, self._compute = request.ranks, request.precision.compute
        self._shard_group = request.ranks.group_of(shard_group_size)
        self._shard_group_size = shard_group_size
        self.follow_plan(request.plan)
        self._descent_group = request.ranks.replicas_of(shard_group_size, within=request.ranks.size)
        self._shards = [self._shard_of(parameter) for parameter in self._parameters]
        self.optimizer = self._make_optimizer(request)
        self._accumulator = FlatBuffer(self._shards)
        self._descent_gradients = self._as_gradients(self._accumulator)
        if request.ascends:
            self.hold_ascent_gradient()
        self._reduction = GradientReduction(
            self._parameters, layout=self._accumulator, bucket_bytes=bucket_bytes
        )
        self._pass: tuple[FlatBuffer, dist.ProcessGroup | None] | None = None
        self._loss_scale = LossScale.of(request.config, device=request.ranks.device)

    def _trainable(self) -> list[nn.Parameter]:
        """The trained parameters, in the order of their parts in a buffer."""
        return [parameter for parameter in self._all_parameters if parameter.requires_grad]

    def _make_optimizer(self, request: ShardingRequest) -> torch.optim.Optimizer:
        """The optimizer of this rank's parts."""
        return request.build_optimizer(self._parameters)

    def _shard_of(self, parameter: nn.Parameter) -> torch.Tensor:
        """The part of a parameter that this rank holds."""
        return parameter.detach()

    def _gradient_of(self, parameter: nn.Parameter, shard: torch.Tensor) -> torch.Tensor:
        """What `parameter.grad` has to be for a backward to add to `shard`."""
        return shard

    def weights(self) -> Sequence[torch.Tensor]:
        """This rank's parts of the parameters."""
        return self._shards

    def held_whole(self) -> Sequence[bool]:
        """Whether each parameter is whole on every rank."""
        return [self._shard_group is None] * len(self._parameters)

    def weights_written(self) -> None:
        """Nothing: forwards read what `weights()` gives."""
        return

    def hold_ascent_gradient(self) -> None:
        """Makes the ascent buffer, unless it is there."""
        if not hasattr(self, "ascent_gradient"):
            self.ascent_gradient = FlatBuffer(self._shards)
            self._ascent_gradients = self._as_gradients(self.ascent_gradient)

    def follow_plan(self, plan: BatchPlan) -> None:
        """Sums ascent gradients over the perturbation groups of `plan`."""
        self._ascent_group = self._ranks.replicas_of(self._shard_group_size, within=plan.group_size)

    def begin_step(self) -> None:
        """Clears the accumulator.

        Raises:
            UserError: a parameter was frozen or unfrozen since the engine was made.
        """
        self._frozen.check_unchanged()
        self._accumulator.flat.zero_()

    @contextmanager
    def ascent_pass(self) -> Iterator[None]:
        """Gradients go to the ascent buffer; leaving, they are summed over its group."""
        self.ascent_gradient.flat.zero_()
        with self._gradients_in(
            self.ascent_gradient, self._ascent_gradients, group=self._ascent_group
        ):
            yield
            self._finish_sum()
        if self._loss_scale is not None:
            self._loss_scale.unscale(self.ascent_gradient.flat)

    @contextmanager
    def descent_pass(self, *, last: bool) -> Iterator[None]:
        """Gradients go to the accumulator; leaving the last, they are summed over all groups."""
        with self._gradients_in(
            self._accumulator,
            self._descent_gradients,
            group=self._descent_group if last else None,
        ):
            yield
            if last:
                self._finish_sum()
        if last and self._loss_scale is not None:
            self._loss_scale.unscale(self._accumulator.flat)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Back-propagates; in the last backward of a pass buckets leave as they fill."""
        assert self._pass is not None, "backward() belongs inside a pass"
        buffer, group = self._pass
        if last and group is not None:
            self._reduction.start(buffer, group)
        if self._loss_scale is not None:
            loss = self._loss_scale.scaled(loss)
        loss.backward()

    @abstractmethod
    def perturbed(self) -> AbstractContextManager[None]:
        """Inside, the parameters are w + ε; outside w again, bit for bit."""

    def perturbation_fidelity(self) -> torch.Tensor:
        """The part of ε that rounding leaves."""
        return perturbation_fidelity(
            self.weights(),
            self.ascent_gradient.views,
            compute=self._compute,
            group=self._shard_group,
            device=self._ranks.device,
        )

    def square_sum(self, flat: torch.Tensor) -> torch.Tensor:
        """Sum of squares; nothing is communicated where every rank holds all of it."""
        return self._summed_over_shards(square_sum(flat))

    def gradient_norm(self) -> torch.Tensor:
        """‖·‖₂ of the reduced gradient."""
        return self.square_sum(self._accumulator.flat).sqrt()

    def scale_gradient(self, factor: torch.Tensor) -> None:
        """Multiplies the accumulator in place."""
        self._accumulator.flat.mul_(factor.to(self._accumulator.flat.device))

    def apply(self, skip: torch.Tensor) -> None:
        """Steps the optimizer on the accumulated gradient, unless `skip`."""
        self._install(self._descent_gradients)
        step_unless(self.optimizer, skip)
        if self._loss_scale is not None:
            self._loss_scale.update(skip)

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Whole parameters and buffers, as CPU tensors."""
        return full_state_dict(self.model)

    def model_pieces(self) -> list[Piece]:
        """This rank's part of parameters and buffers."""
        return self._saved(model_state(self.model))

    def optimizer_pieces(self) -> list[Piece]:
        """This rank's part of the optimizer's state."""
        return self._saved(optimizer_state(self.optimizer, self.model))

    def load(self, weights: SavedTensors, optimizer_state: SavedTensors | None) -> None:
        """Takes this rank's parts of saved tensors."""
        load_state(self.optimizer, self.model, weights, optimizer_state)

    def counters(self) -> dict[str, float]:
        """The loss scale and its age, in float16."""
        return {} if self._loss_scale is None else self._loss_scale.counters()

    def load_counters(self, counters: Mapping[str, float]) -> None:
        """Takes the loss scale of a checkpoint; one without leaves it as it is."""
        if self._loss_scale is not None:
            self._loss_scale.load(counters)

    def _saved(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[Piece]:
        return pieces_of(tensors, ranks=self._ranks, shard_group_size=self._shard_group_size)

    def _summed_over_shards(self, total: torch.Tensor) -> torch.Tensor:
        total = total.to(self._ranks.device)  # offloaded shards are summed on the host
        if self._shard_group is not None:
            dist.all_reduce(total, group=self._shard_group)
        return total

    def _as_gradients(self, buffer: FlatBuffer) -> list[torch.Tensor]:
        return [
            self._gradient_of(parameter, view)
            for parameter, view in zip(self._parameters, buffer.views, strict=True)
        ]

    @contextmanager
    def _gradients_in(
        self,
        buffer: FlatBuffer,
        gradients: Sequence[torch.Tensor],
        *,
        group: dist.ProcessGroup | None,
    ) -> Iterator[None]:
        self._install(gradients)
        self._pass = buffer, group
        try:
            yield
            self._check(gradients)
        finally:
            self._reduction.cancel()
            self._pass = None

    def _finish_sum(self) -> None:
        """Waits for the sum over the replicas of this rank's shard."""
        assert self._pass is not None
        _, group = self._pass
        if group is not None:
            self._reduction.finish()

    def _install(self, gradients: Sequence[torch.Tensor]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def _check(self, gradients: Sequence[torch.Tensor]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if parameter.grad is not gradient:
                raise UserError(
                    "a parameter's .grad was replaced during a pass, so its gradient is lost: "
                    "loss_fn must not call zero_grad() or assign .grad"
                )
