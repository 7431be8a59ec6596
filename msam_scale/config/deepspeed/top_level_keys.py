"""What becomes of each top-level key of a DeepSpeed config.

The keys are those that DeepSpeed 0.19.8 reads (`deepspeed/runtime/config.py` and the modules that
it asks) or has removed; https://www.deepspeed.ai/docs/config-json/ describes most of them.
DeepSpeed ignores any other key, and so a misspelled one; here it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from msam_scale.config.deepspeed.fates import (
    Fate,
    PassedOn,
    Refused,
    Translated,
    asks_for_nothing,
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
    "zero_force_ds_cpu_optimizer": PassedOn("flag"),
    "comms_logger": PassedOn("mapping"),
    "disable_python_gc": PassedOn("flag"),
    "log_level": PassedOn("text"),
    "vocabulary_size": PassedOn("count"),
    # How gradients are added up: not open to choice, because the result depends on it.
    "communication_data_type": Refused(_FLOAT32_SUMS, unless=one_of("fp32")),
    "data_types": Refused(
        f"only grad_accum_dtype: fp32 works: {_FLOAT32_SUMS}",
        unless=lambda value: value in ({}, {"grad_accum_dtype": "fp32"}),
    ),
    "prescale_gradients": Refused(_MEAN_BY_ENGINE, unless=one_of(False)),
    "gradient_predivide_factor": Refused(_MEAN_BY_ENGINE, unless=one_of(1, 1.0)),
    "gradient_allreduce_op": Refused(_MEAN_BY_ENGINE, unless=one_of("mean")),
    "disable_allgather": Refused(
        "every rank needs the updated weights; leave it out", unless=one_of(False)
    ),
    "managed_gradient_accumulation": Refused(
        "the engine accumulates, DeepSpeed reduces once a step; leave it out", unless=one_of(True)
    ),
    "zero_allow_untested_optimizer": Refused(
        "the engine itself refuses optimizers whose result depends on the sharding; leave it out",
        unless=one_of(True),
    ),
    "torch_autocast": Refused(
        'leave it out; "bf16": {"enabled": true} computes in bfloat16 through torch.autocast',
        unless=disabled,
    ),
    # Parts of DeepSpeed's engine that have a counterpart here, or none.
    "activation_checkpointing": Refused(
        "these options are for models that call deepspeed.checkpointing; leave it out: "
        "training.activation_checkpointing=true works for every model",
        unless=asks_for_nothing,
    ),
    "compile": Refused(
        "DeepCompile rewrites the hooks that the two passes rely on; leave it out: "
        "training.compile=true works",
        unless=asks_for_nothing,
    ),
    "checkpoint": Refused(
        "checkpoints are the engine's own: they load at any number of ranks and on any strategy; "
        "leave it out",
        unless=asks_for_nothing,
    ),
    "datastates_ckpt": Refused(
        "checkpoints are the engine's own; leave it out", unless=one_of(False)
    ),
    "dataloader_drop_last": Refused(
        "a step needs a whole mini-batch; leave it out", unless=one_of(True)
    ),
    "aio": Refused(
        "it is for NVMe offload, and the perturbation needs the weights in memory; leave it out, "
        'and offload to {"device": "cpu"}'
    ),
    "csv_monitor": Refused(f"leave it out: {_TENSORBOARD_WORKS}", unless=disabled),
    "wandb": Refused(
        f"leave it out: {_TENSORBOARD_WORKS}, and wandb.init(sync_tensorboard=True) reads it",
        unless=disabled,
    ),
    "comet": Refused(f"leave it out: {_TENSORBOARD_WORKS}", unless=disabled),
    "wall_clock_breakdown": Refused(_OWN_TIMING, unless=one_of(False)),
    "memory_breakdown": Refused(_OWN_TIMING, unless=one_of(False)),
    "timers": Refused(_OWN_TIMING, unless=asks_for_nothing),
    "flops_profiler": Refused(_OWN_TIMING, unless=disabled),
    "dump_state": Refused(
        "leave it out: msam-scale config show prints every setting", unless=one_of(False)
    ),
    "autotuning": Refused(
        "it would start a DeepSpeed training of its own; leave it out", unless=disabled
    ),
    "data_efficiency": Refused(_OWN_DATA, unless=disabled),
    "pipeline": Refused(_NO_MODEL_PARALLELISM),
    "tensor_parallel": Refused(_NO_MODEL_PARALLELISM),
    "sequence_parallel_size": Refused(_NO_MODEL_PARALLELISM, unless=one_of(1)),
    "seq_parallel_communication_data_type": Refused(_NO_MODEL_PARALLELISM, unless=one_of("fp32")),
    "expert_parallel": Refused(_NO_MODEL_PARALLELISM, unless=disabled),
    "use_data_before_expert_parallelism": Refused(_NO_MODEL_PARALLELISM, unless=one_of(False)),
    "hybrid_engine": Refused("it is for generating text; leave it out", unless=disabled),
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
