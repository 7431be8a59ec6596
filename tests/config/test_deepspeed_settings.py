"""What the sections of a DeepSpeed config mean here, and what DeepSpeed is called with."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from config_tables import assert_refused
from deepspeed_configs import GOOD, MSAM, OURS, load, with_section, zero

from launch.cli import main
from msam_scale.config import ConfigError, load_config
from msam_scale.config.deepspeed.engine_settings import engine_settings
from msam_scale.config.deepspeed.loss_scale import LossScaleSettings, loss_scale_settings
from msam_scale.config.yaml_text import read_yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "configs" / "deepspeed"
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@pytest.mark.parametrize(
    ("sizes", "world_size", "size", "chunk"),
    [
        ((64, None, None), 4, 64, None),
        ((64, 4, None), 4, 64, 4),
        ((64, 4, None), None, 64, 4),
        ((64, None, 4), 2, 64, 8),
        ((64, None, 4), None, 64, None),
        ((None, 4, 2), 4, 32, 4),
        ((None, 16, None), 4, 64, 16),
        ((64, 8, 4), 2, 64, 8),
    ],
)
def test_batch_sizes_are_derived_as_deepspeed_derives_them(
    sizes: tuple[int | None, ...], world_size: int | None, size: int, chunk: int | None
) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    given = dict(zip(BATCH_KEYS, sizes, strict=True))
    config = load_config({**given, "msam": MSAM}, world_size=world_size)
    assert (config.batch.size, config.batch.chunk) == (size, chunk)
    if world_size is not None:
        theirs = DeepSpeedConfig({"train_batch_size": 1})
        theirs.world_size = world_size
        for name, value in given.items():
            setattr(theirs, name, value)
        theirs._configure_train_batch_size()
        assert theirs.train_batch_size == size
        assert theirs.train_micro_batch_size_per_gpu == (chunk or size // world_size)


def test_the_msam_section() -> None:
    section = {
        "algorithm": "sam",
        "micro_batches": 1,
        "rho": 0.2,
        "ascent": "unnormalized",
        "non_finite": "skip",
        "max_skipped_steps": 3,
        "seed": 7,
        "norm_samples": 2,
        "shard_group": 2,
        "label_smoothing": 0.1,
    }
    config = load(msam=section, zero_optimization=zero(3), world_size=4)
    objective = config.objective
    assert (objective.algorithm, objective.micro_batches, objective.rho) == ("sam", 1, 0.2)
    assert (objective.ascent, objective.max_skipped_steps) == ("unnormalized", 3)
    assert (config.run.seed, config.training.label_smoothing) == (7, 0.1)
    assert (config.batch.norm_samples, config.sharding.shard_group) == (2, 2)


ADAM = {"lr": 1e-3, "betas": [0.9, 0.95]}
BETAS = {"betas": [0.9, 0.95]}
UNCORRECTED = {"bias_correction": False}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("kind", "params", "zero_section", "name", "decay", "args"),
    [
        ("Adam", ADAM, zero(2), "deepspeed_adamw", 0.0, BETAS),
        ("AdamW", ADAM, zero(3), "deepspeed_adamw", 0.0, BETAS),
        ("adam", {"adam_w_mode": False, "weight_decay": 0.1}, zero(1), "deepspeed_adam", 0.1, {}),
        ("AdamW", {"adam_w_mode": False}, zero(1), "deepspeed_adamw", 0.0, {}),
        ("Adam", UNCORRECTED, zero(1), "deepspeed_adamw", 0.0, UNCORRECTED),
        ("Adam", {"fp32_optimizer_states": True}, zero(0), "adamw", 0.0, {}),
        ("Adam", {"adam_w_mode": False}, zero(0), "adam", 0.0, {}),
        ("AdamW", {"torch_adam": True, "amsgrad": True}, zero(2), "adamw", None, {"amsgrad": True}),
        ("Adam", {"torch_adam": True, "adam_w_mode": False}, zero(2), "adam", None, {}),
        ("Lion", {"weight_decay": 0.1, **BETAS}, zero(1), "deepspeed_lion", 0.1, BETAS),
        ("Adagrad", {"eps": 1e-8}, zero(1), "adagrad", None, {"eps": 1e-8}),
        ("Adagrad", {}, zero(1, **OFFLOADED), "deepspeed_adagrad", None, {}),
        ("Adagrad", {}, zero(0), "adagrad", None, {}),
        ("Adafactor", {}, zero(0), "adafactor", None, {}),
        ("SGD", {"nesterov": True, "momentum": 0.9}, zero(2), "sgd", None, {"nesterov": True}),
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
    section = {"type": kind, "params": params, "legacy_fusion": False}
    optimizer = load(optimizer=section, zero_optimization=zero_section).optimizer
    assert (optimizer.name, optimizer.weight_decay, optimizer.args) == (name, decay, args)
    assert (optimizer.lr, optimizer.momentum) == (params.get("lr"), params.get("momentum"))


def test_without_an_optimizer_the_caller_has_to_bring_one() -> None:
    assert load().optimizer.name == "client"
    with pytest.raises(ConfigError, match=r"optimizer\.name: client is an optimizer that code"):
        load_config(GOOD, for_training=True)


def test_one_place_has_the_rate() -> None:
    optimizer = {"type": "SGD", "params": {"lr": 0.5}}
    absolute = {"type": "WarmupLR", "params": {"warmup_max_lr": 0.1}}
    config = load(optimizer=optimizer, scheduler=absolute)
    assert config.optimizer.lr is None
    assert (config.schedule.name, config.schedule.args) == ("WarmupLR", {"warmup_max_lr": 0.1})
    for name, params, rate in [
        ("LRRangeTest", {}, None),  # 0.001 by default
        ("WarmupDecayLR", {"total_num_steps": 2000}, None),
        ("WarmupLR", {}, 0.5),
        ("WarmupCosineLR", {"total_num_steps": 2000}, 0.5),
    ]:
        loaded = load(optimizer=optimizer, scheduler={"type": name, "params": params})
        assert loaded.optimizer.lr == rate, name
    line = "command line: optimizer.lr: 1.0 has no effect: WarmupLR sets the rate, …"
    source = {**GOOD, "optimizer": optimizer, "scheduler": absolute}
    assert_refused(line, load_config, source, overrides=["optimizer.lr=1.0"])


def test_precision_and_loss_scale() -> None:
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config

    assert load(bf16={"enabled": True}).precision == "bfloat16"
    assert load(bfloat16={"enabled": True}).precision == "bfloat16"
    default = load(fp16={"enabled": True})
    assert default.precision == "float16"
    theirs = DeepSpeedFP16Config(enabled=True)
    assert loss_scale_settings(default) == LossScaleSettings(
        initial_scale=theirs.initial_dynamic_scale(),
        growth_interval=theirs.loss_scale_window,
        hysteresis=theirs.hysteresis,
        consecutive_hysteresis=theirs.consecutive_hysteresis,
        min_scale=theirs.min_loss_scale,
        is_static=False,
    )
    fp16 = {
        "enabled": True,
        "initial_scale_power": 8,
        "loss_scale_window": 20,
        "hysteresis": 3,
        "consecutive_hysteresis": True,
        "min_loss_scale": 4,
    }
    given = load(fp16=fp16, zero_optimization=zero(3))
    assert loss_scale_settings(given) == LossScaleSettings(256.0, 20, 3, True, 4.0, False)
    handed = engine_settings(given, world_size=1, chunk_samples=1)["fp16"]
    assert DeepSpeedFP16Config(**handed) == DeepSpeedFP16Config(**fp16)
    static = load(fp16={"enabled": True, "loss_scale": 128}, zero_optimization=zero(3))
    settings = loss_scale_settings(static)
    assert (settings.initial_scale, settings.is_static) == (128.0, True)
    assert engine_settings(static, world_size=1, chunk_samples=1)["fp16"]["loss_scale"] == 128


def test_what_is_reported_and_clipped() -> None:
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
    assert load(steps_per_print=None) == load()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_load_and_survive_being_written_out(path: Path) -> None:
    config = load_config(path, world_size=4)
    assert config.run.name == path.stem
    assert load_config(read_yaml(config.to_yaml()), world_size=4) == config
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
    page = (ROOT / "docs" / "from-deepspeed.md").read_text("utf-8")
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


def test_a_file_of_deepspeed_is_named_with_its_key_and_a_dict_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {**GOOD, "zero_optimization": zero(2, offload_optimizer={"device": "cpu"})}
    before = copy.deepcopy(source)
    load_config(source, overrides=["sharding.deepspeed.zero_optimization.overlap_comm=true"])
    assert source == before
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps({**source, "gradient_clipping": -1}))
    assert main(["config", "check", str(path)]) == 2
    line = "gradient_clipping: -1 is not above 0; a number > 0, or null works"
    assert capsys.readouterr().err == f"msam-scale: {path}: {line}\n"


def test_a_path_is_looked_for_beside_the_config_and_lands_inline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"train_batch_size": 64, "zero_optimization": {"stage": 2, "overlap_comm": True}}
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "ds.json").write_text(json.dumps(section))
    (tmp_path / "ds.json").write_text(json.dumps({"steps_per_print": 3}))
    run = tmp_path / "here" / "run.json"
    run.write_text(json.dumps(with_section("ds.json")))
    monkeypatch.chdir(tmp_path)
    config = load_config(run)
    assert config.sharding.deepspeed == section
    assert load_config(read_yaml(config.to_yaml())).sharding == config.sharding
    monkeypatch.chdir(tmp_path / "here")
    assert load_config(with_section("ds.json")).sharding.deepspeed == section
    overlap = "sharding.deepspeed.zero_optimization.overlap_comm=false"
    changed = load_config(run, overrides=[overlap]).sharding.deepspeed
    assert changed == {**section, "zero_optimization": {"stage": 2, "overlap_comm": False}}
    named = load_config(with_section(None), overrides=["sharding.deepspeed=ds.json"])
    assert named.sharding.deepspeed == section


def test_a_section_that_agrees_is_fine_and_leaves_the_step_to_us() -> None:
    section = {
        "train_batch_size": 64,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2, "overlap_comm": True},
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "msam": MSAM,
    }
    config = with_section(section)
    config["optimizer"] = {"name": "sgd", "lr": 0.1, "clip_norm": 1.0}
    settings = engine_settings(load_config(config, world_size=2), world_size=2, chunk_samples=8)
    assert settings["gradient_clipping"] == 0.0, "our engine clips"
    assert not {"optimizer", "msam"} & set(settings)
    line = "command line: optimizer.clip_norm: means optimizer.clip_norm: 1.0, but …"
    assert_refused(line, load_config, config, overrides=["optimizer.clip_norm=2.0"])
    load(zero_optimization=zero(3, zero_hpz_partition_size=2), world_size=4)


def test_deepspeed_takes_the_settings() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    precisions = ("float32", "bfloat16", "float16")
    for stage, precision, offload in itertools.product((1, 2, 3), precisions, (False, True)):
        section = {"zero_optimization": {"reduce_bucket_size": 1e4}}
        sharding = {"strategy": f"zero{stage}", "offload": offload, "deepspeed": section}
        optimizer = {"clip_norm": 1.0}
        config = load_config(
            {**OURS, "sharding": sharding, "precision": precision, "optimizer": optimizer}
        )
        theirs = DeepSpeedConfig(engine_settings(config, world_size=1, chunk_samples=8))
        assert (theirs.train_micro_batch_size_per_gpu, theirs.gradient_accumulation_steps) == (8, 1)
        assert theirs.gradient_clipping == 0
        assert theirs.zero_config.stage == stage
        assert theirs.zero_config.reduce_bucket_size == 10_000
        assert (theirs.zero_config.offload_optimizer is not None) == offload
        assert (theirs.zero_config.offload_param is not None) == (offload and stage == 3)
        assert theirs.zero_config.compute_grad_norm == (stage == 3 or offload)
        assert theirs.bfloat16_config.enabled == (stage == 3 and precision == "bfloat16")
        assert theirs.float16_config.enabled == (stage == 3 and precision == "float16")
        assert theirs.steps_per_print is None
        assert theirs.grad_accum_dtype == "fp32"
        assert theirs.communication_data_type is not None
    assert engine_settings(config, world_size=4, chunk_samples=8)["train_batch_size"] == 32
