"""Ways to lay parameters out on ranks. One file a strategy, one line here."""

from __future__ import annotations

from collections.abc import Callable

from msam_scale.sharding.interface import Sharding, ShardingRequest
from msam_scale.sharding.replicated import ReplicatedSharding

__all__ = ["STRATEGIES", "Sharding", "ShardingRequest"]


def _fsdp(request: ShardingRequest) -> Sharding:
    # Imported on call: FSDP2 with its DTensors takes a second to import, DeepSpeed takes several.
    from msam_scale.sharding.fsdp import FullySharding

    return FullySharding(request)


def _zero1_or_2(request: ShardingRequest) -> Sharding:
    from msam_scale.sharding.zero.partitioned_optimizer import OptimizerPartitioning

    return OptimizerPartitioning(request)


def _zero3(request: ShardingRequest) -> Sharding:
    from msam_scale.sharding.zero.partitioned_parameters import ParameterPartitioning

    return ParameterPartitioning(request)


STRATEGIES: dict[str, Callable[[ShardingRequest], Sharding]] = {
    "replicated": ReplicatedSharding,
    "fsdp": _fsdp,
    "zero1": _zero1_or_2,
    "zero2": _zero1_or_2,
    "zero3": _zero3,
}
