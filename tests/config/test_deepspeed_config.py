"""What the sections of a DeepSpeed config mean here."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from deepspeed_configs import EXAMPLES, GOOD, MSAM, load, zero

from msam_scale.config import ConfigError, load_config
from msam_scale.config.deepspeed.engine_settings import engine_settings
from msam_scale.config.deepspeed.loss_scale import loss_scale_settings
from msam_scale.config.yaml_text import read_yaml


@pytest.mark.parametrize(
    ("sizes", "world_size", "size", "chunk"),
    [
        ({"train_batch_size": 64}, 4, 64, None),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4}, 4, 64, 4),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4}, None, 64, 4),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 4}, 2, 64, 8),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 4}, None, 64, None),
        (
            {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2},
            4,
            32,
            4,
        ),
        ({"train_micro_batch_size_per_gpu": 16}, 4, 64, 16),
        (
            {
                "train_batch_size": 64,
                "train_micro_batch_size_per_gpu": 8,
                "gradient_accumulation_steps": 4,
            },
            2,
            64,
            8,
        ),
    ],
)
def test_batch_sizes_are_derived_as_deepspeed_derives_them(
    sizes: dict[str, int], world_size: int | None, size: int, chunk: int | None
) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    config = load_config({**sizes, "msam": MSAM}, world_size=world_size)
    assert (config.batch.size, config.batch.chunk) == (size, chunk)
    if world_size is not None:
        theirs = DeepSpeedConfig({"train_batch_size": 1})
        theirs.world_size = world_size
        for name in ("train_batch_size", "train_micro_batch_size_per_gpu"):
            setattr(theirs, name, sizes.get(name))
        theirs.gradient_accumulation_steps = sizes.get("gradient_accumulation_steps")
        theirs._configure_train_batch_size()
        assert theirs.train_batch_size == size
        assert theirs.train_micro_batch_size_per_gpu == (chunk or size // world_size)


@pytest.mark.parametrize(
    ("sizes", "world_size", "said"),
    [
        (
            {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 5},
            2,
            "train_batch_size: 64 is not a multiple of train_micro_batch_size_per_gpu 5 × 2 ranks",
        ),
        (
            {
                "train_batch_size": 64,
                "train_micro_batch_size_per_gpu": 8,
                "gradient_accumulation_steps": 2,
            },
            2,
            "64 is not train_micro_batch_size_per_gpu 8 × gradient_accumulation_steps 2 × 2 ranks"
            " = 32",
        ),
        (
            {
                "train_batch_size": 64,
                "train_micro_batch_size_per_gpu": 8,
                "gradient_accumulation_steps": 3,
            },
            None,
            "64 is not a multiple of train_micro_batch_size_per_gpu 8 × gradient_accum",
        ),
        (
            {"train_batch_size": 64, "gradient_accumulation_steps": 3},
            2,
            "64 samples of train_batch_size cannot be cut evenly into gradient_accumulation_steps "
            "3 × 2 ranks = 6 parts",
        ),
        ({"train_micro_batch_size_per_gpu": 8}, None, "give train_batch_size, or --nproc"),
        ({}, 2, "train_batch_size: is missing, and so is train_micro_batch_size_per_gpu"),
        ({"gradient_accumulation_steps": 2}, 2, "one of them has to be there"),
    ],
)
def test_batch_sizes_that_disagree_are_refused_with_the_numbers(
    sizes: dict[str, int], world_size: int | None, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({**sizes, "msam": MSAM}, world_size=world_size)
    assert len(caught.value.problems) == 1
    assert said in str(caught.value)


def test_the_msam_section() -> None:
    section = {
        "algorithm": "msam",
        "micro_batches": 4,
        "rho": 0.2,
        "max_skipped_steps": 3,
        "seed": 7,
        "norm_samples": 2,
        "shard_group": 2,
        "label_smoothing": 0.1,
    }
    config = load(msam=section, zero_optimization=zero(3), world_size=4)
    assert (config.objective.micro_batches, config.objective.rho) == (4, 0.2)
    assert (config.objective.max_skipped_steps, config.run.seed) == (3, 7)
    assert (config.batch.norm_samples, config.sharding.shard_group) == (2, 2)
    assert config.training.label_smoothing == 0.1


ADAM = {"lr": 1e-3, "betas": [0.9, 0.95]}


@pytest.mark.parametrize(
    ("kind", "params", "zero_section", "name", "decay", "args"),
    [
        ("Adam", ADAM, zero(2), "deepspeed_adamw", 0.0, {"betas": [0.9, 0.95]}),
        ("AdamW", ADAM, zero(3), "deepspeed_adamw", 0.0, {"betas": [0.9, 0.95]}),
        ("adam", {"adam_w_mode": False, "weight_decay": 0.1}, zero(1), "deepspeed_adam", 0.1, {}),
        ("AdamW", {"adam_w_mode": False}, zero(1), "deepspeed_adamw", 0.0, {}),
        (
            "Adam",
            {"bias_correction": False},
            zero(1),
            "deepspeed_adamw",
            0.0,
            {"bias_correction": False},
        ),
        ("Adam", {}, zero(0), "adamw", 0.0, {}),
        ("Adam", {"adam_w_mode": False}, zero(0), "adam", 0.0, {}),
        ("AdamW", {"torch_adam": True, "amsgrad": True}, zero(2), "adamw", None, {"amsgrad": True}),
        ("Adam", {"torch_adam": True, "adam_w_mode": False}, zero(2), "adam", None, {}),
        ("Lion", {"weight_decay": 0.1}, zero(1), "deepspeed_lion", 0.1, {}),
        ("Adagrad", {"eps": 1e-8}, zero(1), "adagrad", None, {"eps": 1e-8}),
        (
            "Adagrad",
            {},
            zero(1, offload_optimizer={"device": "cpu"}),
            "deepspeed_adagrad",
            None,
            {},
        ),
        ("SGD", {"nesterov": True}, zero(2), "sgd", None, {"nesterov": True}),
    ],
)
def test_the_optimizer_is_the_one_that_deepspeed_builds(
    kind: str,
    params: dict[str, Any],
    zero_section: dict[str, Any],
    name: str,
    decay: float | None,
    args: dict[str, Any],
) -> None:
    config = load(optimizer={"type": kind, "params": params}, zero_optimization=zero_section)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.weight_decay, optimizer.args) == (name, decay, args)
    assert optimizer.lr == params.get("lr")


def test_without_an_optimizer_the_caller_has_to_bring_one() -> None:
    config = load()
    assert config.optimizer.name == "client"
    with pytest.raises(ConfigError, match=r"optimizer\.name: client is an optimizer that code"):
        load_config(GOOD, for_training=True)


def test_one_place_has_the_rate() -> None:
    optimizer = {"type": "SGD", "params": {"lr": 0.5}}
    absolute = {"type": "WarmupLR", "params": {"warmup_max_lr": 0.1}}
    config = load(optimizer=optimizer, scheduler=absolute)
    assert config.optimizer.lr is None
    assert (config.schedule.name, config.schedule.args) == ("WarmupLR", {"warmup_max_lr": 0.1})
    relative = {"type": "WarmupCosineLR", "params": {"total_num_steps": 2000}}
    assert load(optimizer=optimizer, scheduler=relative).optimizer.lr == 0.5
    with pytest.raises(ConfigError, match=r"command line: optimizer\.lr: 1\.0 has no effect"):
        load_config(
            {**GOOD, "optimizer": optimizer, "scheduler": absolute}, overrides=["optimizer.lr=1.0"]
        )


def test_precision_and_loss_scale() -> None:
    assert load(bf16={"enabled": True}).precision == "bfloat16"
    assert load(bfloat16={"enabled": True}).precision == "bfloat16"
    default = load(fp16={"enabled": True})
    assert default.precision == "float16"
    settings = loss_scale_settings(default)
    assert (settings.initial_scale, settings.growth_interval, settings.hysteresis) == (
        2**16,
        1000,
        2,
    )
    assert (settings.min_scale, settings.is_static) == (1.0, False)
    given = load(
        fp16={
            "enabled": True,
            "initial_scale_power": 8,
            "loss_scale_window": 20,
            "hysteresis": 3,
            "consecutive_hysteresis": True,
            "min_loss_scale": 4,
        }
    )
    settings = loss_scale_settings(given)
    assert (settings.initial_scale, settings.growth_interval, settings.hysteresis) == (256, 20, 3)
    assert (settings.consecutive_hysteresis, settings.min_scale) == (True, 4.0)
    static = loss_scale_settings(load(fp16={"enabled": True, "loss_scale": 128}))
    assert (static.initial_scale, static.is_static) == (128.0, True)


def test_the_defaults_of_the_loss_scale_are_deepspeeds() -> None:
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config

    settings = loss_scale_settings(load(fp16={"enabled": True}))
    theirs = DeepSpeedFP16Config(enabled=True)
    assert settings.initial_scale == theirs.initial_dynamic_scale()
    assert settings.growth_interval == theirs.loss_scale_window
    assert settings.hysteresis == theirs.hysteresis
    assert settings.consecutive_hysteresis == theirs.consecutive_hysteresis
    assert settings.min_scale == theirs.min_loss_scale


def test_what_is_reported() -> None:
    config = load(
        steps_per_print=25,
        tensorboard={"enabled": True, "output_path": "logs", "job_name": "run"},
        gradient_clipping=0.5,
    )
    assert config.monitor.every == 25
    assert config.monitor.deepspeed_tensorboard == "logs/run"
    assert config.optimizer.clip_norm == 0.5
    unnamed = load(tensorboard={"enabled": True})
    assert unnamed.monitor.deepspeed_tensorboard == "DeepSpeedJobName"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_load_and_survive_being_written_out(path: Path) -> None:
    config = load_config(path, world_size=4)
    assert config.run.name == path.stem
    again = load_config(read_yaml(config.to_yaml()), world_size=4)
    assert again == config
    for world_size in (1, 2, 8):
        load_config(path, world_size=world_size)


def test_overrides_go_before_what_deepspeeds_config_says() -> None:
    config = load_config(
        EXAMPLES / "zero2_bf16.json",
        overrides=[
            "optimizer.lr=0.01",
            "optimizer.args.eps=1e-6",
            "sharding.strategy=zero3",
            "sharding.deepspeed.zero_optimization.overlap_comm=false",
            "schedule.args.total_num_steps=20000",
            "model.name=vit",
        ],
        world_size=4,
    )
    assert (config.optimizer.lr, config.model.name) == (0.01, "vit")
    assert config.optimizer.args == {"betas": [0.9, 0.95], "eps": 1e-6}
    assert config.schedule.args["total_num_steps"] == 20000
    settings = engine_settings(config, world_size=4, chunk_samples=8)
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["overlap_comm"] is False


def test_the_config_of_the_migration_page_loads() -> None:
    page = (EXAMPLES.parents[1] / "docs" / "from-deepspeed.md").read_text("utf-8")
    blocks = re.findall(r"```diff\n(.*?)```", page, flags=re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(" {")]
    lines = block.splitlines()
    before, after = (
        json.loads("\n".join(line[1:] for line in lines if not line.startswith(other)))
        for other in ("+", "-")
    )
    assert load_config(after, world_size=8).objective.micro_batches == 32
    with pytest.raises(ConfigError, match="msam: is missing"):
        load_config(before)


def test_loading_changes_no_dict() -> None:
    source = {**GOOD, "zero_optimization": zero(2, offload_optimizer={"device": "cpu"})}
    before = copy.deepcopy(source)
    load_config(source, overrides=["sharding.deepspeed.zero_optimization.overlap_comm=true"])
    assert source == before
