"""A default of DeepSpeed's means the same here written out and left out, and what it means there.

The defaults are read from DeepSpeed's own schema and constants, so that another release whose
defaults differ is noticed.
"""

from __future__ import annotations

import inspect
from enum import Enum
from typing import Any

import pytest
from deepspeed_configs import GOOD, OURS, load, refusal, zero
from pydantic import BaseModel

from msam_scale.config import Config, load_config
from msam_scale.config.deepspeed.engine_settings import engine_settings
from msam_scale.config.deepspeed.fates import PassedOn
from msam_scale.config.deepspeed.zero_keys import ZERO_KEYS
from msam_scale.config.load import load as load_with_notes
from msam_scale.optimization.from_config import optimizer_builder

# Constants that are no keys of a config, or that belong into a section with this prefix.
SECTIONS = {
    "FP16_": "fp16",
    "BFLOAT16_": "bf16",
    "TORCH_AUTOCAST_": "torch_autocast",
    "CHECKPOINT_TAG": "checkpoint",
    "LOAD_UNIVERSAL": "checkpoint",
    "USE_NODE_LOCAL": "checkpoint",
    "GRAD_ACCUM_DTYPE": "data_types",
    "PARAM_DTYPE": "data_types",
    "BUFFER_DTYPE": "data_types",
    "KEEP_IN_FP32": "data_types",
}
ELSEWHERE = {
    "OPTIMIZER_TYPE",  # null: the optimizer that code passes
    "SCHEDULER_TYPE",
    "LEGACY_FUSION",
    "TRAIN_BATCH_SIZE",  # null, and one of the three has to be there
    "CHECKPOINT_PARALLEL_WRITE_PIPELINE_STAGE",  # two levels down
    # Read from a class with another default, as below.
    "BFLOAT16_CHECK_OVERFLOW",
    "BFLOAT16_IMMEDIATE_GRAD_UPDATE",
}


def of_constants() -> list[tuple[str, Any]]:
    from deepspeed.runtime import constants

    found = []
    for name, key in vars(constants).items():
        if name in ELSEWHERE or not hasattr(constants, f"{name}_DEFAULT"):
            continue
        section = next((s for prefix, s in SECTIONS.items() if name.startswith(prefix)), None)
        found.append(
            (f"{section}.{key}" if section else key, getattr(constants, f"{name}_DEFAULT"))
        )
    return found


def of_models() -> list[tuple[str, Any]]:
    """Of DeepSpeed's classes for sections."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor import config as monitors
    from deepspeed.runtime import config as deepspeeds
    from deepspeed.runtime import precision_config
    from deepspeed.runtime.config import CompileConfig
    from deepspeed.runtime.zero import config as zeros
    from deepspeed.runtime.zero import offload_config

    models: dict[str, type[BaseModel]] = {
        "zero_optimization": zeros.DeepSpeedZeroConfig,
        "zero_optimization.offload_param": offload_config.DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig,
        "fp16": precision_config.DeepSpeedFP16Config,
        "bf16": precision_config.DeepSpeedBF16Config,
        "tensorboard": monitors.TensorBoardConfig,
        "wandb": monitors.WandbConfig,
        "csv_monitor": monitors.CSVConfig,
        "comet": monitors.CometConfig,
        "comms_logger": CommsLoggerConfig,
        "compile": CompileConfig,
        "hybrid_engine": deepspeeds.HybridEngineConfig,
    }
    return [
        (f"{section}.{field.alias or name}", field.get_default(call_default_factory=True))
        for section, model in models.items()
        for name, field in model.model_fields.items()
    ]


def of_whole_sections() -> list[tuple[str, Any]]:
    """Of sections that DeepSpeed reads into plain dicts and objects."""
    from deepspeed.runtime import config as deepspeeds

    read = deepspeeds.DeepSpeedConfig({"train_batch_size": 1})
    return [
        ("aio", read.aio_config),
        ("checkpoint", read.checkpoint_config),
        ("pipeline", read.pipeline),
        ("data_efficiency", read.data_efficiency_config),
        ("timers", {"throughput": dict(read.timers_config)}),
        ("activation_checkpointing", vars(read.activation_checkpointing_config)),
        ("flops_profiler", vars(read.flops_profiler_config)),
        ("tensor_parallel", {"autotp_size": 0, "tensor_parallel": {"tp_size": 1}}),
    ]


def written_out(key: str, default: Any) -> dict[str, Any]:
    """A config's part that gives `key`, dotted, its default as JSON has it."""
    value = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
    value = value.value if isinstance(value, Enum) else value
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def read_by_deepspeed(config: Config) -> dict[str, Any]:
    """What the engine of a ZeRO config is started with, as DeepSpeed understands it."""
    from deepspeed.runtime.config import DeepSpeedConfig

    read = vars(DeepSpeedConfig(engine_settings(config, world_size=1, chunk_samples=2)))
    read["zero_config"] = sections = read["zero_config"].model_dump()
    for name in ("offload_param", "offload_optimizer"):
        if sections[name] is not None and sections[name]["device"] == "none":
            sections[name] = None  # as DeepSpeed asks for it
    plain = bool | int | float | str | dict | BaseModel | None
    return {
        name: value
        for name, value in read.items()
        if isinstance(value, plain) and name != "_param_dict"
    }


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("source", [of_constants, of_models, of_whole_sections])
def test_a_default_that_is_written_out_changes_nothing(source: Any, stage: int) -> None:
    defaults = source()
    assert len(defaults) > 5
    for key, default in defaults:
        part = written_out(key, default)
        section = {**zero(stage), **part.pop("zero_optimization", {})}
        if key.endswith((".stage", ".leaf_module")):
            continue  # the latter a list of class names, which nobody writes out
        configs = load(zero_optimization=zero(stage)), load(**part, zero_optimization=section)
        if stage:
            without, with_default = map(read_by_deepspeed, configs)
            assert with_default == without, key
        ours, theirs = (config.to_dict() for config in configs)
        for config in (ours, theirs):
            del config["sharding"]["deepspeed"]  # where it is handed on, DeepSpeed has read it
        assert theirs == ours, key


@pytest.mark.parametrize("stage", [1, 3])
def test_null_is_as_good_as_missing(stage: int) -> None:
    handed_on = [key for key, fate in ZERO_KEYS.items() if isinstance(fate, PassedOn)]
    assert len(handed_on) > 5
    nulls = dict.fromkeys(handed_on)
    assert load(zero_optimization={**nulls, **zero(stage)}) == load(zero_optimization=zero(stage))


def test_a_missing_clipping_is_deepspeeds_own() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    theirs = DeepSpeedConfig({"train_batch_size": 1}).gradient_clipping
    loaded = load_with_notes(GOOD)
    assert loaded.config.optimizer.clip_norm == theirs == 1.0
    assert any("gradient_clipping is missing" in note and "1.0" in note for note in loaded.notes)
    assert f"clip_norm: {theirs}" in loaded.config.to_yaml()
    told = load_with_notes({**GOOD, "gradient_clipping": 0.0})
    assert told.config.optimizer.clip_norm is None
    assert not told.notes
    assert load(gradient_clipping=None) == loaded.config, "null is as good as missing"
    ours = load_config({**OURS, "sharding": {"strategy": "zero1", "deepspeed": {}}})
    assert ours.optimizer.clip_norm is None, "a section is merged into what our config says"


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_missing_arguments_of_an_optimizer_are_deepspeeds_own(kind: str) -> None:
    """Of what stands for it without ZeRO; torch's have the defaults that DeepSpeed hands them."""
    import torch
    from deepspeed.ops.adam import FusedAdam

    theirs: Any = FusedAdam if "Adam" in kind else getattr(torch.optim, kind)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(theirs).parameters.items()
        if name in ("lr", "betas", "eps", "weight_decay", "momentum", "lr_decay", "nesterov")
    }
    parameter = torch.nn.Parameter(torch.zeros(3))
    ours = optimizer_builder(load(optimizer={"type": kind}))([parameter]).defaults
    assert {name: ours[name] for name in defaults} == defaults


def test_the_loss_scale_is_deepspeeds_own() -> None:
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config

    theirs, ours = DeepSpeedFP16Config(), load(fp16={"enabled": True}).training.loss_scale
    assert ours.static is None
    assert (ours.initial_power, ours.window, ours.hysteresis, ours.min) == (
        theirs.initial_scale_power,
        theirs.loss_scale_window,
        theirs.hysteresis,
        theirs.min_loss_scale,
    )
    assert ours.consecutive_hysteresis == theirs.consecutive_hysteresis


@pytest.mark.parametrize(
    "part",
    [
        {"comms_logger": {"enabled": False, "verbose": True}},
        {"data_types": {"grad_accum_dtype": None}},
        {"tensor_parallel": {"autotp_size": 0}},
        {"checkpoint": {"tag_validation": "WARN", "load_universal": False}},
        {"gradient_allreduce_op": None, "sparse_gradients": False, "amp": {"enabled": False}},
        {"optimizer": None, "scheduler": None, "bf16": None},
        {"zero_optimization": {"stage": 0, "overlap_comm": False, "reduce_bucket_size": 5e8}},
        {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "none"}}},
    ],
)
def test_what_asks_for_nothing_passes(part: dict[str, Any]) -> None:
    assert load(**part) == load()


@pytest.mark.parametrize(
    "part",
    [
        {"managed_gradient_accumulation": False},
        {"gradient_predivide_factor": 2.0},
        {"checkpoint": {"load_universal": True}},
        {"tensor_parallel": {"autotp_size": 2}},
        {"comms_logger": {"enabled": True}},
        {"zero_optimization": {"stage": 1, "ignore_unused_parameters": False}},
        {"bf16": {"enabled": True, "check_grad_overflow": False}},
    ],
)
def test_what_asks_for_something_does_not(part: dict[str, Any]) -> None:
    assert next(iter(part)) in refusal(**part)


def test_auto_is_one_message_that_proposes_values() -> None:
    line = refusal(
        train_batch_size="auto",
        gradient_clipping="auto",
        optimizer={"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
        zero_optimization=zero(2, reduce_bucket_size="auto"),
    )
    assert "train_batch_size: 'auto' is for the Hugging Face Trainer" in line
    for proposal in ("gradient_clipping: 1.0", "optimizer.params.lr: 5e-05", "size: 500000000"):
        assert proposal in line


def test_what_becomes_of_a_baseline_of_a_deepspeed_config() -> None:
    """`objective.algorithm=vanilla` on the command line, as for a config of ours."""
    loaded = load_with_notes({**GOOD, "msam": {"micro_batches": 8, "rho": 0.1}}, overrides=[
        "objective.algorithm=vanilla"
    ])  # fmt: skip
    assert loaded.config.objective.rho == 0.05
    assert any(note.startswith("config: msam.rho: left out") for note in loaded.notes)
