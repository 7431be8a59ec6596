"""ZeRO-3: DeepSpeed shards parameters, gradients and optimizer state; we perturb its shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.batch_plan import BatchPlan
from msam_scale.sharding.fidelity import perturbation_fidelity
from msam_scale.sharding.frozen import FrozenParameters
from msam_scale.sharding.interface import ShardingRequest
from msam_scale.sharding.norms import square_sum
from msam_scale.sharding.pieces import Piece
from msam_scale.sharding.placement import check_offload, place
from msam_scale.sharding.saved import SavedTensors
from msam_scale.sharding.zero import private_api
from msam_scale.sharding.zero.shard_state import ShardState
from msam_scale.sharding.zero.start import (
    check_secondary_shards,
    join_deepspeed,
    settings_for_deepspeed,
    start_engine,
)


@dataclass(frozen=True)
class _Shards:
    """DeepSpeed's own flat gradient buffer, cut where its float32 weights are."""

    flat: torch.Tensor
    views: list[torch.Tensor]
    starts: list[int]

    @classmethod
    def over(cls, flat: torch.Tensor, like: Sequence[torch.Tensor]) -> _Shards:
        sizes = [tensor.numel() for tensor in like]
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        views = [flat[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        return cls(flat, views, starts)


class ParameterPartitioning:
    """Shards of parameters, perturbed by rounding float32 master shards to the computing type.

    A backward leaves its gradient shards in a float32 buffer of DeepSpeed's. After the ascent they
    become ε and then w + ε there, which is rounded into the shards that forwards gather; the buffer
    is then free for the descent, and w comes back by rounding the masters once more, bit for bit.
    The one buffer of ours is the accumulator over micro-batches.

    Raises:
        UserError: the model has no trainable parameter, the optimizer cannot be sharded, or
            secondary shards do not fit into shard groups.
    """

    forward_is_collective = True

    def __init__(self, request: ShardingRequest) -> None:
        self.model: nn.Module = request.model
        self._ranks, self._compute = request.ranks, request.precision.compute
        self._ascends = request.ascends
        self._is_float16 = request.config.precision == "float16"
        size = request.plan.shard_group_size
        settings = settings_for_deepspeed(request)
        check_offload(request)
        check_secondary_shards(settings, shard_group_size=size)
        join_deepspeed(request)
        self._shard_group = request.ranks.process_group_of(size)
        self._shard_group_size = size
        self.follow_plan(request.plan)
        self._descent_group = request.ranks.replicas_of(size, within=request.ranks.size)
        # DeepSpeed averages over the shard group, and the engine's losses are made for sums.
        self._num_averaged = size
        full_precision = self._partition(request, settings)
        parameters = [p for p in request.model.parameters() if p.requires_grad]
        if not parameters:
            raise UserError("the model has no trainable parameter: every requires_grad is False")
        self._frozen = FrozenParameters(request.model)
        self._engine = start_engine(request, parameters=parameters, settings=settings)
        private_api.destroy_with(self, self._engine)
        private_api.restore_linear_after(self)
        if self._is_float16:
            private_api.skip_at_the_lowest_scale(self._engine)
        self.optimizer = private_api.base_optimizer(self._engine)
        self._masters = private_api.master_shards(self._engine)
        self._computing = private_api.computing_shards(self._engine)
        self.ascent_gradient: Any = _Shards.over(
            private_api.gradient_shards(self._engine), like=self._masters
        )
        self._gradient = self.ascent_gradient.flat
        self._accumulator = torch.zeros_like(self._gradient) if request.ascends else self._gradient
        self._state = ShardState(
            self._engine,
            self.model,
            group=self._shard_group,
            device=request.ranks.device,
            frozen=full_precision,
        )
        self._state.set_masters(full_precision)
        self.weights_written()
        if self._compute is not torch.float32:
            self.model.register_forward_pre_hook(
                partial(_narrow_inputs, dtype=self._compute), with_kwargs=True
            )

    def _partition(
        self, request: ShardingRequest, settings: dict[str, Any]
    ) -> dict[nn.Parameter, torch.Tensor]:
        """Places and shards block by block, the rest last; returns float32 shards of everything.

        DeepSpeed rounds weights to the computing type before it makes its float32 masters of them.
        """
        full_precision: dict[nn.Parameter, torch.Tensor] = {}
        done: list[nn.Module] = []
        for module in (*request.blocks, request.model):
            place(module, request=request, apart_from=done, contiguous=True)
            new = [p for p in module.parameters() if not private_api.is_sharded(p)]
            whole = {p: p.detach().flatten() for p in new}
            for parameter in new:
                # `zero.Init` leaves the types of a module that exists as they are, and DeepSpeed's
                # loss scaler exists only if it finds float16.
                parameter.data = parameter.data.to(self._compute)
            private_api.shard_module(
                module, group=self._shard_group, settings=settings, dtype=self._compute
            )
            place_in_group = dist.get_rank(self._shard_group)
            for parameter in new:
                length = private_api.shard_numel(parameter)
                start = place_in_group * length
                shard = whole.pop(parameter)[start : start + length]
                padded = shard.new_zeros(length)
                padded[: shard.numel()] = shard
                full_precision[parameter] = padded
            done.append(module)
        return full_precision

    def weights(self) -> Sequence[torch.Tensor]:
        """DeepSpeed's float32 master shards."""
        return self._masters

    def held_whole(self) -> list[bool]:
        """Every parameter is sharded."""
        return [False] * len(self._masters)

    def weights_written(self) -> None:
        """Rounds the masters into the shards that forwards gather."""
        self._set_computing(self._masters)

    def hold_ascent_gradient(self) -> None:
        """DeepSpeed's buffer is there in any case."""

    def follow_plan(self, plan: BatchPlan) -> None:
        """Sums ascent gradients over the perturbation groups of `plan`."""
        self._ascent_group = self._ranks.replicas_of(self._shard_group_size, within=plan.group_size)

    def begin_step(self) -> None:
        """Clears the accumulator, and drops what an evaluation left gathered.

        Raises:
            UserError: a parameter was frozen or unfrozen since the engine was made.
        """
        self._frozen.check_unchanged()
        private_api.start_accumulating(self._engine)
        self._accumulator.zero_()

    @contextmanager
    def ascent_pass(self) -> Iterator[None]:
        """Gradients go to DeepSpeed's buffer; leaving, they are summed over the group."""
        private_api.start_accumulating(self._engine)
        yield
        if self._ascent_group is not None:
            dist.all_reduce(self._gradient, group=self._ascent_group)
        self._unscale(self._gradient)

    @contextmanager
    def descent_pass(self, *, last: bool) -> Iterator[None]:
        """Gradients join the accumulator; leaving the last, they are summed over shard groups."""
        if self._ascends:
            private_api.start_accumulating(self._engine)
        yield
        if self._ascends:
            self._accumulator.add_(self._gradient)
        if last:
            if self._descent_group is not None:
                dist.all_reduce(self._accumulator, group=self._descent_group)
            self._unscale(self._accumulator)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Back-propagates through DeepSpeed's engine, which reduces and scatters."""
        self._engine.backward(loss.float() * self._num_averaged, scale_wrt_gas=False)
        private_api.finish_backward(self._engine)

    def perturbation_fidelity(self) -> torch.Tensor:
        """The part of ε that rounding leaves."""
        return perturbation_fidelity(
            self._masters,
            self.ascent_gradient.views,
            compute=self._compute,
            group=self._shard_group,
            device=self._ranks.device,
        )

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Rounds w + ε into the shards that compute and, whatever happens, w afterwards."""
        torch._foreach_add_(self.ascent_gradient.views, self._masters)
        self._set_computing(self.ascent_gradient.views)
        try:
            yield
        finally:
            self._set_computing(self._masters)

    def square_sum(self, flat: torch.Tensor) -> torch.Tensor:
        """Sum of squares over the shard group; padding is zero."""
        total = square_sum(flat).to(self._ranks.device)
        dist.all_reduce(total, group=self._shard_group)
        return total

    def gradient_norm(self) -> torch.Tensor:
        """‖·‖₂ of the reduced gradient."""
        return self.square_sum(self._accumulator).sqrt()

    def scale_gradient(self, factor: torch.Tensor) -> None:
        """Multiplies the accumulator in place."""
        self._accumulator.mul_(factor.to(self._accumulator.device))

    def apply(self, skip: torch.Tensor) -> None:
        """Lets DeepSpeed step on the accumulated gradient, unless `skip`.

        Its loss scaler has to see an overflow to lower the scale, so it is shown one.
        """
        if bool(skip):
            if self._is_float16:
                self._gradient.fill_(float("inf"))
                self._step()
            return
        if self._accumulator is not self._gradient:
            self._gradient.copy_(self._accumulator)
        self._gradient.mul_(private_api.loss_scale(self._engine))  # DeepSpeed will divide by it
        offloaded = private_api.offloaded_gradients(self._engine)
        if offloaded is not None:
            torch._foreach_copy_(offloaded, self.ascent_gradient.views)
        self._step()

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Whole parameters in float32 and buffers, as CPU tensors."""
        return self._state.full_state_dict()

    def model_pieces(self) -> list[Piece]:
        """This rank's float32 shards, and its part of the buffers."""
        return self._state.model_pieces(ranks=self._ranks)

    def optimizer_pieces(self) -> list[Piece]:
        """This rank's shards of the optimizer's state."""
        return self._state.optimizer_pieces(self.optimizer, ranks=self._ranks)

    def load(self, weights: SavedTensors, optimizer_state: SavedTensors | None) -> None:
        """Takes this rank's shards of saved tensors."""
        # What is cut up later would leave secondary shards of the old weights.
        private_api.release_gathered(self._engine)
        self._state.load(self.optimizer, weights, optimizer_state)
        self.weights_written()

    def counters(self) -> dict[str, float]:
        """DeepSpeed's loss scale and its age, in float16."""
        if not self._is_float16:
            return {}
        scaler = private_api.loss_scaler(self._engine)
        return {
            "loss_scale": float(scaler.cur_scale),
            "hysteresis": float(getattr(scaler, "cur_hysteresis", 1)),
            "last_overflow": float(getattr(scaler, "last_overflow_iter", -1)),
            "step": float(getattr(scaler, "cur_iter", 0)),
        }

    def load_counters(self, counters: Mapping[str, float]) -> None:
        """Takes the loss scale of a checkpoint; one without leaves it as it is."""
        if not self._is_float16 or not counters:
            return
        scaler = private_api.loss_scaler(self._engine)
        scaler.cur_scale = counters["loss_scale"]
        scaler.cur_hysteresis = int(counters["hysteresis"])
        scaler.last_overflow_iter = int(counters["last_overflow"])
        scaler.cur_iter = int(counters["step"])

    def _step(self) -> None:
        if self._ranks.device.type == "cuda":
            # DeepSpeed reads gradients on streams of its own, which do not wait for what we wrote.
            torch.cuda.current_stream().synchronize()
        self._engine.step()

    def _set_computing(self, shards: list[torch.Tensor]) -> None:
        with torch.no_grad():
            private_api.release_gathered(self._engine)
            torch._foreach_copy_(self._computing, shards)
            private_api.refresh_gathered(self._engine)

    def _unscale(self, gradient: torch.Tensor) -> None:
        if self._is_float16:
            gradient.div_(private_api.loss_scale(self._engine))


def _narrow_inputs(
    _module: nn.Module, args: Any, kwargs: Any, *, dtype: torch.dtype
) -> tuple[Any, Any]:
    def narrow(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(dtype)
        return value

    return tuple(map(narrow, args)), {name: narrow(value) for name, value in kwargs.items()}
