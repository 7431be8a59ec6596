"""Every way to lay training state out on ranks, by the name that tables give it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layout:
    """A strategy on numbers of ranks.

    Attributes:
        sharding: the config's section.
        sizes: numbers of ranks it is tested on.
        precision: the widest it has.
        same_modules: ranks of a shard group have to run the same modules.
    """

    sharding: dict[str, Any]
    sizes: tuple[int, ...] = (1, 2, 4)
    precision: str = "float64"
    same_modules: bool = field(default=False)


LAYOUTS: dict[str, Layout] = {
    "replicated": Layout({"strategy": "replicated"}),
    "FSDP": Layout({"strategy": "fsdp"}),
    "hybrid FSDP 2x2": Layout({"strategy": "fsdp", "shard_group": 2}, sizes=(4,)),
    "ZeRO-1": Layout({"strategy": "zero1"}, precision="float32"),
    "ZeRO-2": Layout({"strategy": "zero2"}, precision="float32"),
    "ZeRO-3": Layout({"strategy": "zero3"}, precision="float32", same_modules=True),
    "hybrid ZeRO-3 2x2": Layout(
        {"strategy": "zero3", "shard_group": 2}, sizes=(4,), precision="float32", same_modules=True
    ),
}
