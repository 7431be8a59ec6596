"""Small DeepSpeed configs that load, and the line that one is refused with."""

from __future__ import annotations

from typing import Any

import pytest

from msam_scale.config import Config, ConfigError, load_config

MSAM: dict[str, Any] = {"micro_batches": 8, "rho": 0.05}
GOOD: dict[str, Any] = {"train_batch_size": 64, "msam": MSAM}
OURS: dict[str, Any] = {"batch": {"size": 64}, "objective": {"micro_batches": 8}}


def load(*, world_size: int | None = None, **keys: Any) -> Config:
    return load_config({**GOOD, **keys}, world_size=world_size)


def refusal(**keys: Any) -> str:
    """The one line that a DeepSpeed config with these keys is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(**keys)
    assert len(caught.value.problems) == 1, str(caught.value)
    return str(caught.value)


def with_section(section: object, **sharding: Any) -> dict[str, Any]:
    """A config of ours on ZeRO with DeepSpeed's settings in `sharding.deepspeed`."""
    return {**OURS, "sharding": {"strategy": "zero2", "deepspeed": section, **sharding}}


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"stage": stage, **keys}
