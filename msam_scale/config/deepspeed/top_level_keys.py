"""What becomes of each top-level key of a DeepSpeed config.

The keys are those that DeepSpeed 0.19.8 reads (`deepspeed/runtime/config.py` and the modules that
it asks) or has removed; https://www.deepspeed.ai/docs/config-json/ describes most of them.
DeepSpeed ignores any other key, and so a misspelled one; here it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from msam_scale.config.deepspeed.fates import (
    EITHER,
    Fate,
    PassedOn,
    Refused,
    Translated,
    disabled,
    one_of,
)

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_BATCH = Translated(into=("batch.size", "batch.chunk"))
_FLOAT32_SUMS = "gradients are kept, added up and reduced in float32; leave it out"
_MEAN_BY_ENGINE = (
    "the engine divides every loss by the whole mini-batch, so that gradients only have to be "
    "added; leave it out"
)
_TENSORBOARD_WORKS = "tensorboard works, as does monitor.jsonl in a run from the command line"
_OWN_TIMING = (
    "DeepSpeed's clocks see neither the two passes nor the reduction between them; leave it out: "
    "samples_per_second is in metrics.jsonl, and torch.profiler shows the rest"
)
_OWN_DATA = "data is ordered by run.seed alone; leave it out, and draw samples in your own loader"
_NO_MODEL_PARALLELISM = "the engine is data parallel; leave it out: stage 3 shards large models"
_REMOVED = "DeepSpeed 0.19.8 has removed it and refuses it as well; leave it out"

MSAM = Translated(
    into=(
        "objective.algorithm",
        "objective.micro_batches",
        "objective.rho",
        "objective.ascent",
        "objective.non_finite",
        "objective.max_skipped_steps",
        "run.seed",
        "batch.norm_samples",
        "sharding.shard_group",
        "training.label_smoothing",
    )
)

TOP_LEVEL_KEYS: Mapping[str, Fate] = {
    # What the step computes.
    "msam": MSAM,
    "train_batch_size": _BATCH,
    "train_micro_batch_size_per_gpu": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "gradient_clipping": Translated(into=("optimizer.clip_norm",)),
    "optimizer": Translated(
        into=(
            "optimizer.name",
            "optimizer.lr",
            "optimizer.momentum",
            "optimizer.weight_decay",
            "optimizer.args",
        )
    ),
    "scheduler": Translated(into=("schedule.name", "schedule.args", "optimizer.lr")),
    "bf16": Translated(into=("precision",)),
    "bfloat16": Translated(into=("precision",)),
    "fp16": Translated(into=("precision", "training.loss_scale")),
    "zero_optimization": Translated(into=("sharding.strategy", "sharding.deepspeed")),
    # What is reported.
    "steps_per_print": Translated(into=("monitor.every",)),
    "tensorboard": Translated(into=("monitor.deepspeed_tensorboard",)),
    # What only changes how DeepSpeed works.
    "comms_logger": PassedOn("mapping", {"prof_all": True}),
    "disable_python_gc": PassedOn("flag", False),
    "log_level": PassedOn("text"),
    "vocabulary_size": PassedOn("count"),
    # How gradients are added up: not open to choice, because the result depends on it.
    "communication_data_type": Refused(_FLOAT32_SUMS, accepts=one_of("fp32")),
    "data_types": Refused(
        f"only grad_accum_dtype: fp32 works: {_FLOAT32_SUMS}",
        # "fp32" is no default of DeepSpeed's, but what is so in any case.
        default={"grad_accum_dtype": "fp32", "keep_in_fp32_modules": "auto"},
    ),
    "prescale_gradients": Refused(_MEAN_BY_ENGINE),
    "gradient_predivide_factor": Refused(_MEAN_BY_ENGINE, default=1.0),
    "gradient_allreduce_op": Refused(_MEAN_BY_ENGINE, default="mean"),
    "disable_allgather": Refused("every rank needs the updated weights; leave it out"),
    "managed_gradient_accumulation": Refused(
        "the engine accumulates, DeepSpeed reduces once a step; leave it out", default=True
    ),
    "zero_allow_untested_optimizer": Refused(
        "the engine itself refuses optimizers whose result depends on the sharding; leave it out",
        accepts=one_of(True),
    ),
    # It has DeepSpeed refuse an optimizer of the caller's that would be slow on the host. Here it
    # would refuse those of the config as well, which the engine makes.
    "zero_force_ds_cpu_optimizer": EITHER,
    "torch_autocast": Refused(
        'leave it out; "bf16": {"enabled": true} computes in bfloat16 through torch.autocast',
        accepts=disabled,
    ),
    # Parts of DeepSpeed's engine that have a counterpart here, or none.
    "activation_checkpointing": Refused(
        "these options are for models that call deepspeed.checkpointing; leave it out: "
        "training.activation_checkpointing=true works for every model",
    ),
    "compile": Refused(
        "DeepCompile rewrites the hooks that the two passes rely on; leave it out: "
        "training.compile=true works",
        default={
            "double_buffer": True,
            "free_activation_threshold": 10485760,
            "keep_int_input_tensors": True,
            "offload_activation_pin_memory": True,
        },
    ),
    "checkpoint": Refused(
        "checkpoints are the engine's own: they load at any number of ranks and on any strategy; "
        "leave it out",
        default={"tag_validation": "Warn", "checkpoint_serialization": True},
    ),
    "datastates_ckpt": Refused("checkpoints are the engine's own; leave it out"),
    "dataloader_drop_last": Refused(
        "a step needs a whole mini-batch; leave it out", accepts=one_of(True, False)
    ),
    "aio": Refused(
        "it is for NVMe offload, and the perturbation needs the weights in memory; leave it out, "
        'and offload to {"device": "cpu"}',
        default={
            "block_size": 1048576,
            "queue_depth": 8,
            "intra_op_parallelism": 1,
            "overlap_events": True,
        },
    ),
    "csv_monitor": Refused(f"leave it out: {_TENSORBOARD_WORKS}", accepts=disabled),
    "wandb": Refused(
        f"leave it out: {_TENSORBOARD_WORKS}, and wandb.init(sync_tensorboard=True) reads it",
        accepts=disabled,
    ),
    "comet": Refused(f"leave it out: {_TENSORBOARD_WORKS}", accepts=disabled),
    "wall_clock_breakdown": Refused(_OWN_TIMING),
    "memory_breakdown": Refused(_OWN_TIMING),
    "timers": Refused(_OWN_TIMING, default={"throughput": {"enabled": True, "synchronized": True}}),
    "flops_profiler": Refused(_OWN_TIMING, accepts=disabled),
    "dump_state": Refused("leave it out: msam-scale config show prints every setting"),
    "autotuning": Refused(
        "it would start a DeepSpeed training of its own; leave it out", accepts=disabled
    ),
    "data_efficiency": Refused(_OWN_DATA, accepts=disabled),
    "pipeline": Refused(
        _NO_MODEL_PARALLELISM,
        default={
            "stages": "auto",
            "partition": "best",
            "pipe_partitioned": True,
            "grad_partitioned": True,
        },
    ),
    "tensor_parallel": Refused(
        _NO_MODEL_PARALLELISM,
        default={
            "vocab_parallel_ce_backend": "torch",
            "tensor_parallel": {"tp_size": 1, "tp_grain_size": 1},
            "tp": {"tp_size": 1, "tp_grain_size": 1},
        },
    ),
    "sequence_parallel_size": Refused(_NO_MODEL_PARALLELISM, default=1),
    "seq_parallel_communication_data_type": Refused(_NO_MODEL_PARALLELISM, default="fp32"),
    "expert_parallel": Refused(_NO_MODEL_PARALLELISM, accepts=disabled),
    "use_data_before_expert_parallelism": Refused(_NO_MODEL_PARALLELISM),
    "hybrid_engine": Refused("it is for generating text; leave it out", accepts=disabled),
    "weight_quantization": Refused("it is for inference; leave it out"),
    # Removed from DeepSpeed.
    **dict.fromkeys(
        (
            "amp",
            "compression_training",
            "curriculum_learning",
            "eigenvalue",
            "elasticity",
            "graph_harvesting",
            "nebula",
            "progressive_layer_drop",
            "quantize_training",
            "sparse_attention",
            "sparse_gradients",
        ),
        Refused(_REMOVED),
    ),
}
