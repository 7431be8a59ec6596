"""DeepSpeed settings in a config of ours, and what DeepSpeed is called with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed_configs import MSAM, OURS, load, refusal, zero

from msam_scale.config import ConfigError, load_config
from msam_scale.config.deepspeed.engine_settings import engine_settings
from msam_scale.config.yaml_text import read_yaml


def with_section(section: object, **sharding: Any) -> dict[str, Any]:
    return {**OURS, "sharding": {"strategy": "zero2", "deepspeed": section, **sharding}}


def test_a_path_is_looked_for_beside_the_config_and_lands_inline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"train_batch_size": 64, "zero_optimization": {"stage": 2, "overlap_comm": True}}
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "ds.json").write_text(json.dumps(section))
    run = tmp_path / "here" / "run.json"
    run.write_text(json.dumps(with_section("ds.json")))
    monkeypatch.chdir(tmp_path)
    config = load_config(run)
    assert config.sharding.deepspeed == section
    assert load_config(read_yaml(config.to_yaml())).sharding == config.sharding
    monkeypatch.chdir(tmp_path / "here")
    assert load_config(with_section("ds.json")).sharding.deepspeed == section
    changed = load_config(
        run, overrides=["sharding.deepspeed.zero_optimization.overlap_comm=false"]
    )
    assert isinstance(changed.sharding.deepspeed, dict)
    assert changed.sharding.deepspeed["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    other = load_config(
        {**OURS, "sharding": {"strategy": "zero2"}}, overrides=["sharding.deepspeed=ds.json"]
    )
    assert other.sharding.deepspeed == section


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"sharding\.deepspeed: .*none\.json.*No such file"
    ) as caught:
        load_config(with_section("none.json"))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"zero_optimization": {"stage": 3}},
            r"zero_optimization\.stage: means sharding\.strategy: 'zero3', but .* is 'zero2'",
        ),
        ({"train_batch_size": 32}, r"train_batch_size: means batch\.size: 32, but .* is 64"),
        (
            {"train_micro_batch_size_per_gpu": 4},
            r"train_micro_batch_size_per_gpu: means batch\.chunk: 4, but batch\.chunk is null",
        ),
        ({"gradient_clipping": 1.0}, r"means optimizer\.clip_norm: 1\.0, but .* is null"),
        ({"optimizer": {"type": "SGD", "params": {"lr": 0.1}}}, r"optimizer\.lr: 0\.1, but"),
        ({"bf16": {"enabled": True}}, r"bf16: means precision: 'bfloat16', but .* 'float32'"),
        ({"msam": {"micro_batches": 4}}, r"msam\.micro_batches: means objective\.micro_batches: 4"),
        ({"steps_per_print": 5}, r"steps_per_print: means monitor\.every: 5, but .* is 10"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "takes one parameter's full"),
        ({"flops_profiler": {"enabled": True}}, r"sharding\.deepspeed\.flops_profiler: "),
        ({"zero_optimization": {"stagee": 2}}, "did you mean stage"),
    ],
)
def test_what_both_decide_has_to_agree(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(with_section(section))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].key.startswith("sharding.deepspeed.")


def test_a_section_that_agrees_is_fine() -> None:
    section = {
        "train_batch_size": 64,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2, "overlap_comm": True},
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "fp16": {"enabled": True, "hysteresis": 4},
        "msam": MSAM,
    }
    config = with_section(section)
    config["optimizer"] = {"name": "sgd", "lr": 0.1, "clip_norm": 1.0}
    config["precision"] = "float16"
    config["training"] = {"loss_scale": {"hysteresis": 4}}
    loaded = load_config(config, world_size=2)
    settings = engine_settings(loaded, world_size=2, chunk_samples=8)
    assert settings["gradient_clipping"] == 0.0, "our engine clips"
    assert "optimizer" not in settings
    assert "msam" not in settings
    with pytest.raises(ConfigError, match=r"means optimizer\.clip_norm: 1\.0, but") as caught:
        load_config(config, overrides=["optimizer.clip_norm=2.0"])
    assert caught.value.problems[0].source == "command line"


def test_what_is_off_there_is_off_here() -> None:
    config = {**with_section({"bf16": {"enabled": False}}), "precision": "bfloat16"}
    with pytest.raises(ConfigError, match=r"bf16\.enabled: false contradicts precision: bfloat16"):
        load_config(config)
    section = {"zero_optimization": {"offload_optimizer": {"device": "none"}}}
    with pytest.raises(ConfigError, match=r"'none' contradicts sharding\.offload: true"):
        load_config(with_section(section, offload=True))


def test_secondary_groups_divide_the_world() -> None:
    keys = zero(3, zero_hpz_partition_size=2)
    load(zero_optimization=keys, world_size=4)
    assert refusal(zero_optimization=keys, world_size=3, train_batch_size=48) == (
        "config: zero_optimization.zero_hpz_partition_size: 2 does not divide 3 ranks; 1 or 3 works"
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("offload", [False, True])
def test_deepspeed_takes_the_settings(stage: int, precision: str, offload: bool) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    config = load_config(
        {
            **OURS,
            "sharding": {
                "strategy": f"zero{stage}",
                "offload": offload,
                "deepspeed": {"zero_optimization": {"reduce_bucket_size": 1e4}},
            },
            "precision": precision,
            "optimizer": {"clip_norm": 1.0},
        }
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


def test_deepspeeds_loss_scaler_has_our_settings() -> None:
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config

    fp16 = {"enabled": True, "initial_scale_power": 9, "hysteresis": 5, "min_loss_scale": 2}
    settings = engine_settings(
        load(fp16=fp16, zero_optimization=zero(3)), world_size=1, chunk_samples=1
    )
    theirs = DeepSpeedFP16Config(**settings["fp16"])
    assert theirs == DeepSpeedFP16Config(**fp16)
