"""What becomes of each key of `zero_optimization` and its two offload sections.

The keys are the fields of `deepspeed.runtime.zero.config.DeepSpeedZeroConfig` under both of their
names, and those that DeepSpeed has removed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from msam_scale.config.deepspeed.fates import EITHER, Fate, PassedOn, Refused, Translated, one_of

_QUANTIZED = (
    "what is sent in 8 or 4 bits is rounded by amounts that depend on the number of ranks, and the "
    "perturbation is lost in it; leave it out"
)
_OWN_CHECKPOINTS = "checkpoints are the engine's own; leave it out"
_REMOVED = "DeepSpeed 0.19.8 has removed it and refuses it as well; leave it out"


def _instead(name: str) -> Refused:
    return Refused(f"is an old name; {name} works")


# Read at stage 3; DeepSpeed takes them with and without `stage3_` in front.
_STAGE_3: Mapping[str, Fate] = {
    "prefetch_bucket_size": PassedOn("count", 50_000_000),
    "param_persistence_threshold": PassedOn("count", 100_000),
    "model_persistence_threshold": PassedOn("count", sys.maxsize),
    "max_live_parameters": PassedOn("count", 1_000_000_000),
    "max_reuse_distance": PassedOn("count", 1_000_000_000),
    "module_granularity_threshold": PassedOn("count", 0),
    "use_all_reduce_for_fetch_params": PassedOn("flag", False),
    "allgather_sequential": PassedOn("flag", False),
    # Either value is met: `engine.full_state_dict()` gathers, in full precision.
    "gather_16bit_weights_on_model_save": EITHER,
}

_NO_OFFLOAD = {"device": "none", "pin_memory": True}

ZERO_KEYS: Mapping[str, Fate] = {
    "stage": Translated(into=("sharding.strategy",)),
    "contiguous_gradients": PassedOn("flag", True),
    "reduce_scatter": PassedOn("flag", True),
    "reduce_bucket_size": PassedOn("count", 500_000_000),
    "use_multi_rank_bucket_allreduce": PassedOn("flag", True),
    "allgather_partitions": PassedOn("flag", True),
    "allgather_bucket_size": PassedOn("count", 500_000_000),
    "overlap_comm": PassedOn("flag"),
    "compute_grad_norm": EITHER,  # the engine has the norm, and clips
    "offload_param": PassedOn("mapping", _NO_OFFLOAD),
    "offload_optimizer": PassedOn("mapping", _NO_OFFLOAD),
    "sub_group_size": PassedOn("count", 1_000_000_000),
    "parameter_alignment": PassedOn("flag", False),
    "zero_hpz_partition_size": PassedOn("count", 1),
    "memory_efficient_linear": PassedOn("flag", True),
    "override_module_apply": PassedOn("flag", True),
    "log_trace_cache_warnings": PassedOn("flag", False),
    "enable_sanity_checks": PassedOn("flag", False),
    "leaf_module": PassedOn("mapping"),
    **_STAGE_3,
    **{f"stage3_{name}": fate for name, fate in _STAGE_3.items()},
    "round_robin_gradients": Refused(
        "DeepSpeed 0.19.8 then takes one parameter's full-precision weights for another's; "
        "leave it out",
        accepts=one_of(False),
    ),
    "zero_quantized_weights": Refused(_QUANTIZED, accepts=one_of(False)),
    "zero_quantized_nontrainable_weights": Refused(_QUANTIZED, accepts=one_of(False)),
    "zero_quantized_gradients": Refused(_QUANTIZED, accepts=one_of(False)),
    "zenflow": Refused(
        "it updates some weights a step late, so a perturbation would start from old ones; "
        "leave it out",
        accepts=one_of(None),
    ),
    "ignore_unused_parameters": Refused(
        "parameters without a gradient get a zero one, on every strategy; leave it out",
        default=True,
    ),
    "legacy_stage1": Refused(_REMOVED, accepts=one_of(False)),
    "elastic_checkpoint": Refused(_OWN_CHECKPOINTS, accepts=one_of(False)),
    "load_from_fp32_weights": Refused(_OWN_CHECKPOINTS, default=True),
    "pipeline_loading_checkpoint": Refused(_OWN_CHECKPOINTS, accepts=one_of(False)),
    "save_muon_momentum_buffer_in_memory": Refused(
        "Muon's result depends on the sharding, so it is refused; leave it out",
        accepts=one_of(False),
    ),
    "cpu_offload": _instead('"offload_optimizer": {"device": "cpu"}'),
    "cpu_offload_param": _instead('"offload_param": {"device": "cpu"}'),
    "cpu_offload_use_pin_memory": _instead("pin_memory in offload_optimizer or offload_param"),
    "stage3_gather_fp16_weights_on_model_save": _instead(
        "stage3_gather_16bit_weights_on_model_save"
    ),
    "mics_shard_size": Refused(f"{_REMOVED}: msam.shard_group does the same with stage 3"),
    "mics_hierarchical_params_gather": Refused(_REMOVED),
    "zeropp_loco_param": Refused(_REMOVED),
}

_DEVICE = Refused(
    "is not a device that works: cpu or none does", accepts=one_of("cpu"), default="none"
)
_NVME_ONLY = Refused(
    'it is for NVMe offload, and the perturbation needs the weights in memory; {"device": "cpu"} '
    "works"
)

OFFLOAD_KEYS: Mapping[str, Mapping[str, Fate]] = {
    "offload_optimizer": {
        "device": _DEVICE,
        "pin_memory": PassedOn("flag"),
        "ratio": Refused(
            "the two parts of the weights would be updated by different optimizers; leave it out",
            default=1.0,
        ),
        "super_offload": Refused(
            "it updates weights while the next step starts; leave it out", accepts=one_of(False)
        ),
        "cpuadam_cores_perc": Refused("it is for super_offload; leave it out", default=0.8),
        "buffer_count": replace(_NVME_ONLY, default=4),
        **dict.fromkeys(("nvme_path", "pipeline_read", "pipeline_write", "fast_init"), _NVME_ONLY),
    },
    "offload_param": {
        "device": _DEVICE,
        "pin_memory": PassedOn("flag"),
        "nvme_path": _NVME_ONLY,
        "buffer_count": replace(_NVME_ONLY, default=5),
        "buffer_size": replace(_NVME_ONLY, default=100_000_000),
        "max_in_cpu": replace(_NVME_ONLY, default=1_000_000_000),
    },
}

# A ZeRO config that shards nothing has no use for the other keys.
STAGE_OF: Mapping[str, int] = {"replicated": 0, "zero1": 1, "zero2": 2, "zero3": 3}
STRATEGY_OF: Mapping[int, str] = {stage: strategy for strategy, stage in STAGE_OF.items()}


def offloads_optimizer(zero: Mapping[str, Any]) -> bool:
    """Whether a `zero_optimization` section keeps the optimizer's state in host memory."""
    section = zero.get("offload_optimizer")
    return isinstance(section, dict) and section.get("device", "none") != "none"
