"""Ways to lay parameters out on ranks. One file a strategy, one line here."""

from __future__ import annotations

from collections.abc import Callable

from msam_scale.sharding.interface import Sharding, ShardingRequest
from msam_scale.sharding.replicated import ReplicatedSharding

__all__ = ["STRATEGIES", "Sharding", "ShardingRequest"]

STRATEGIES: dict[str, Callable[[ShardingRequest], Sharding]] = {
    "replicated": ReplicatedSharding,
}
