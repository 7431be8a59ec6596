"""Gives a module its values: rank 0's, on this rank's device, in the type it is trained in."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
import torch.distributed as dist
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.materialization import materialize
from msam_scale.sharding.interface import ShardingRequest


def place(
    module: nn.Module,
    *,
    request: ShardingRequest,
    apart_from: Collection[nn.Module] = (),
    contiguous: bool = False,
) -> None:
    """Materialises, converts, moves and broadcasts what a module holds. Collective.

    Every rank gets the values of rank 0. Layouts of memory stay as they are, but trained
    parameters become dense: gradients are, and fused optimizers walk through both in step.

    Args:
        module: parameters and buffers on any device; those on the meta device get their values.
        request: says where to, and in what type.
        apart_from: modules inside that are left alone, placed already.
        contiguous: parameters lose a layout of their own, such as channels last.
    """
    device, dtype = request.ranks.device, request.precision.parameters
    for one in _modules(module, apart_from=set(apart_from)):
        materialize(one, seed=request.config.run.seed)
        for parameter in one.parameters(recurse=False):
            parameter.data = _placed(parameter.data, device=device, dtype=dtype)
            if contiguous:
                parameter.data = parameter.data.contiguous()
            elif parameter.requires_grad:
                parameter.data = _dense(parameter.data)
            _broadcast(parameter.data, request.ranks.world)
        for name, buffer in one.named_buffers(recurse=False):
            placed = _placed(buffer, device=device, dtype=dtype)
            if placed is not buffer:
                setattr(one, name, placed)
            _broadcast(placed, request.ranks.world)


def check_offload(request: ShardingRequest) -> None:
    """Refuses offloaded shards with several shard groups on an accelerator.

    Raises:
        UserError: the sum over groups would need a backend for host memory besides NCCL.
    """
    has_replicas = request.plan.shard_group_size < request.ranks.size
    on_host = request.config.sharding.offload and request.ranks.device.type != "cpu"
    if has_replicas and on_host:
        raise UserError(
            f"sharding.shard_group: {request.plan.shard_group_size} of {request.ranks.size} ranks "
            "cannot be combined with sharding.offload on GPUs, whose gradients lie in host memory; "
            "leave one of them out"
        )


def _modules(module: nn.Module, *, apart_from: set[nn.Module]) -> Iterator[nn.Module]:
    if module in apart_from:
        return
    yield module
    for child in module.children():
        yield from _modules(child, apart_from=apart_from)


def _placed(tensor: torch.Tensor, *, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    widens = dtype is torch.float64 and tensor.is_floating_point()
    return tensor.to(device=device, dtype=dtype if widens else None)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    strides = torch.empty_like(tensor, device="meta").stride()
    return tensor if strides == tensor.stride() else tensor.contiguous()


def _broadcast(tensor: torch.Tensor, world: dist.ProcessGroup | None) -> None:
    if world is None:
        return
    # Backends read memory in order and know few types: they get contiguous bytes.
    whole = tensor.detach().contiguous()
    dist.broadcast(_bytes(whole), src=0, group=world)
    if not torch.equal(_bytes(whole), _bytes(tensor)):
        tensor.detach().copy_(whole)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)
