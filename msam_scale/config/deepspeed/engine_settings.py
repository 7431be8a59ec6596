"""The settings that `deepspeed.initialize` is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msam_scale.config.deepspeed.loss_scale import loss_scale_settings
from msam_scale.config.deepspeed.precision import LOSS_SCALE_KEYS
from msam_scale.config.deepspeed.translation import handed_on
from msam_scale.config.deepspeed.zero_keys import STAGE_OF, offloads_optimizer
from msam_scale.config.schema import Config


def engine_settings(config: Config, *, world_size: int, chunk_samples: int) -> dict[str, Any]:
    """What DeepSpeed's engine does of a step: sharding, reduction, the optimizer, offload.

    Accumulation, clipping and the schedule stay with our engine, so that they mean the same on
    every strategy; sums are float32. At stages 1 and 2 DeepSpeed sees float32 weights, which are
    perturbed whole, and torch.autocast computes in fewer bits; at stage 3 DeepSpeed holds the
    weights in the type that computes, beside full-precision shards.

    Args:
        config: with a ZeRO strategy; what its `sharding.deepspeed` hands on is merged last.
        world_size: ranks that DeepSpeed is data parallel over; with hybrid sharding a shard group.
        chunk_samples: samples of one forward on one rank.

    Returns:
        A DeepSpeed config as a dict.
    """
    stage = STAGE_OF[config.sharding.strategy]
    assert stage > 0, f"{config.sharding.strategy} does without DeepSpeed"
    assert not isinstance(config.sharding.deepspeed, str), "load_config reads the file"
    settings: dict[str, Any] = {
        "train_batch_size": chunk_samples * world_size,
        "train_micro_batch_size_per_gpu": chunk_samples,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        # The engine has a list of its own of optimizers that can be sharded.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage},
    }
    if stage == 3:
        settings.update(_precision_sections(config))
    if config.sharding.offload:
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            settings["zero_optimization"]["offload_param"] = {"device": "cpu"}
    merged = _merged(settings, handed_on(config.sharding.deepspeed or {}))
    zero = merged["zero_optimization"]
    if stage < 3 and not offloads_optimizer(zero):
        # The engine has the norm already; DeepSpeed cannot leave it out where it offloads.
        zero.setdefault("compute_grad_norm", False)
    return merged


def _precision_sections(config: Config) -> dict[str, Any]:
    if config.precision == "bfloat16":
        return {"bf16": {"enabled": True}}
    if config.precision == "float16":
        scale = config.training.loss_scale
        dynamic = {theirs: getattr(scale, ours) for theirs, ours, _ in LOSS_SCALE_KEYS}
        settings = loss_scale_settings(config)
        static = settings.initial_scale if settings.is_static else 0
        return {"fp16": {"enabled": True, "loss_scale": static, **dynamic}}
    return {}


def _merged(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with `over` written into it, mapping by mapping."""
    merged = dict(settings)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = _merged(below, value)
        merged[key] = value
    return merged
