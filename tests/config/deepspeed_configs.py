"""Small DeepSpeed configs that load."""

from __future__ import annotations

from typing import Any

from msam_scale.config import Config, load_config

MSAM: dict[str, Any] = {"micro_batches": 8, "rho": 0.05}
GOOD: dict[str, Any] = {"train_batch_size": 64, "msam": MSAM}
OURS: dict[str, Any] = {"batch": {"size": 64}, "objective": {"micro_batches": 8}}


def load(*, world_size: int | None = None, **keys: Any) -> Config:
    return load_config({**GOOD, **keys}, world_size=world_size)


def with_section(section: object, **sharding: Any) -> dict[str, Any]:
    """A config of ours on ZeRO with DeepSpeed's settings in `sharding.deepspeed`."""
    return {**OURS, "sharding": {"strategy": "zero2", "deepspeed": section, **sharding}}


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"stage": stage, **keys}
