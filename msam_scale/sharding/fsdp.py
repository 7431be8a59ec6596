"""PyTorch's FSDP2: parameters, gradients and optimizer state in shards, gathered block by block.

Parameters are sharded over one-dimensional groups of G_s consecutive ranks. The replicas among
these groups are the engine's own affair: FSDP2's two-dimensional mesh keeps unreduced gradients in
a private buffer, where those of ascent and descent would be mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from data_pipelines.errors import UserError
from msam_scale.precision import Precision
from msam_scale.sharding.buffered import BufferedSharding
from msam_scale.sharding.gradient_reduction import BUCKET_BYTES
from msam_scale.sharding.interface import ShardingRequest
from msam_scale.sharding.norms import square_sum
from msam_scale.sharding.pieces import Piece
from msam_scale.sharding.placement import check_offload, place
from msam_scale.sharding.saved import SavedTensors

_MATRIX_PRODUCTS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_MOST_ELEMENTS_KEPT = 2**20


class FullySharding(BufferedSharding):
    """Shards of parameters, perturbed in place by swapping their contents with the ascent buffer.

    A few small parameters stay whole on every rank (`_kept_whole`). They come last in the buffers,
    and the engine sums their gradients itself.

    Raises:
        UserError: the model has no trainable parameter.
    """

    forward_is_collective = True

    def __init__(self, request: ShardingRequest, *, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._modules = _shard_blocks(request)
        super().__init__(
            request, shard_group_size=request.plan.shard_group_size, bucket_bytes=bucket_bytes
        )
        num_sharded = sum(isinstance(parameter, DTensor) for parameter in self._parameters)
        starts = [*self._accumulator.starts, self._accumulator.flat.numel()]
        self._whole_from = starts[num_sharded]
        self._counts_whole = request.ranks.rank % request.plan.shard_group_size == 0

    def _trainable(self) -> list[nn.Parameter]:
        # Those kept whole come last, so that they are one range of a buffer.
        return sorted(
            super()._trainable(), key=lambda parameter: not isinstance(parameter, DTensor)
        )

    def _make_optimizer(self, request: ShardingRequest) -> torch.optim.Optimizer:
        optimizer = super()._make_optimizer(request)
        # Fused kernels refuse both kinds of parameter in one call.
        for group in list(optimizer.param_groups):
            whole = [p for p in group["params"] if not isinstance(p, DTensor)]
            if whole and len(whole) < len(group["params"]):
                group["params"] = [p for p in group["params"] if isinstance(p, DTensor)]
                optimizer.add_param_group({**group, "params": whole})
        return optimizer

    def _shard_of(self, parameter: nn.Parameter) -> torch.Tensor:
        return _local(parameter)

    def _gradient_of(self, parameter: nn.Parameter, shard: torch.Tensor) -> torch.Tensor:
        if not isinstance(parameter, DTensor):
            return shard
        return DTensor.from_local(
            shard,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    def held_whole(self) -> list[bool]:
        """Those that FSDP2 does not shard are whole."""
        return [not isinstance(parameter, DTensor) for parameter in self._parameters]

    def weights_written(self) -> None:
        """Drops what a forward has left gathered of the weights before."""
        self._reshard()

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Swaps the shards with w + ε and, whatever happens, copies w back."""
        weights, views = self._shards, self.ascent_gradient.views
        torch._foreach_add_(views, weights)
        _swap(weights, views)
        try:
            yield
        finally:
            self._reshard()  # an error in a forward leaves w + ε gathered
            torch._foreach_copy_(weights, views)

    def square_sum(self, flat: torch.Tensor) -> torch.Tensor:
        """Sum of squares over the shard group."""
        total = square_sum(flat[: self._whole_from])
        if self._counts_whole:
            total = total + square_sum(flat[self._whole_from :])
        return self._summed_over_shards(total)

    def model_pieces(self) -> list[Piece]:
        """This rank's shards, and its part of what is whole."""
        self._reshard()
        return super().model_pieces()

    def optimizer_pieces(self) -> list[Piece]:
        """The same of the optimizer's state."""
        self._reshard()
        return super().optimizer_pieces()

    def load(self, weights: SavedTensors, optimizer_state: SavedTensors | None) -> None:
        """Takes this rank's shards of saved tensors."""
        self._reshard()
        super().load(weights, optimizer_state)

    def _finish_sum(self) -> None:
        super()._finish_sum()
        assert self._pass is not None
        buffer, _ = self._pass
        whole = buffer.flat[self._whole_from :]
        if self._shard_group is not None and whole.numel():
            dist.all_reduce(whole, group=self._shard_group)

    def _reshard(self) -> None:
        """Puts the shards back in the place of parameters that a forward has left gathered."""
        for module in self._modules:
            module.reshard()


def _shard_blocks(request: ShardingRequest) -> list[FSDPModule]:
    """Places and shards block by block, the rest last; no rank holds more than a block whole."""
    model, kind = request.model, request.ranks.device.type
    group = request.ranks.process_group_of(request.plan.shard_group_size)
    offload = request.config.sharding.offload
    check_offload(request)
    options: dict[str, Any] = {
        "mesh": DeviceMesh.from_group(group, kind, mesh_dim_names=("shard",)),
        "mp_policy": _mixed_precision(request.precision),
        "offload_policy": CPUOffloadPolicy(pin_memory=kind != "cpu")
        if offload
        else OffloadPolicy(),
    }

    def shard(module: nn.Module) -> FSDPModule:
        kept = _kept_whole(module, request.precision, offloads=offload and kind != "cpu")
        return fully_shard(module, ignored_params=kept, **options)

    modules: list[FSDPModule] = []
    for block in request.blocks:
        place(block, request=request, contiguous=True)
        modules.append(shard(block))
    place(model, request=request, apart_from=request.blocks, contiguous=True)
    modules.append(shard(model))
    for module in modules:
        # Losses are divided by the number of samples beforehand, so gradients are summed; and a
        # parameter that one rank's chunk leaves unused must not change what the others send.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_reduce_scatter_unused_params(True)
    return modules


def _mixed_precision(precision: Precision) -> MixedPrecisionPolicy:
    if precision.compute == precision.parameters:
        return MixedPrecisionPolicy()
    # Which operations compute in the narrow type is autocast's decision, as in every strategy.
    return MixedPrecisionPolicy(
        param_dtype=precision.compute, reduce_dtype=precision.parameters, cast_forward_inputs=False
    )


def _kept_whole(model: nn.Module, precision: Precision, *, offloads: bool) -> set[nn.Parameter]:
    """What cannot be sharded, and what autocast reads in full precision and is small.

    FSDP2 gathers in the narrow type. That is what autocast makes of the weights of matrix products;
    norms, position embeddings and their like it reads as they are, and so they stay. Shards that
    are offloaded lie elsewhere than what stays, so there everything is sharded.

    Raises:
        UserError: a parameter has no dimensions, and shards are offloaded to the host.
    """
    kept = {parameter for parameter in model.parameters() if parameter.dim() == 0}
    if offloads:
        if kept:
            raise UserError(
                "sharding.offload: the model has parameters without dimensions, which FSDP2 cannot "
                "shard and offload; parameters of shape (1,), or sharding.strategy: zero3, work"
            )
        return kept
    if precision.compute != precision.parameters:
        for module in model.modules():
            if not isinstance(module, _MATRIX_PRODUCTS):
                own = module.parameters(recurse=False)
                kept.update(one for one in own if one.numel() <= _MOST_ELEMENTS_KEPT)
        for module in model.modules():
            if isinstance(module, _MATRIX_PRODUCTS):  # also holds what is tied to an embedding
                kept.difference_update(p for p in module.parameters(recurse=False) if p.dim())
    return kept


def _local(parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return cast(DTensor, parameter.detach()).to_local()
    return parameter.detach()


def _swap(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> None:
    # One tensor at a time: the only extra memory is a copy of the largest shard.
    for one, other in zip(first, second, strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
