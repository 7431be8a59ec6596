"""Every key of a DeepSpeed config has a fate, and meets it."""

from __future__ import annotations

from typing import Any

import pytest
from deepspeed_configs import load, refusal, zero

from msam_scale.config import ConfigError
from msam_scale.config.deepspeed.engine_settings import engine_settings
from msam_scale.config.deepspeed.fates import Fate, PassedOn, Refused, Translated
from msam_scale.config.deepspeed.top_level_keys import TOP_LEVEL_KEYS
from msam_scale.config.deepspeed.zero_keys import OFFLOAD_KEYS, ZERO_KEYS
from msam_scale.config.keys import all_keys


class Recorder(dict[str, Any]):
    """A config that notes which keys are looked up in it."""

    asked: set[str] = set()  # noqa: RUF012  # of the class: DeepSpeed works on a copy

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self  # `key in config.keys()` is a look-up as well

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)


def test_every_key_that_deepspeed_looks_for_has_a_fate() -> None:
    from deepspeed.runtime import config as deepspeeds

    Recorder.asked = set()
    deepspeeds.DeepSpeedConfig(Recorder(train_batch_size=1))
    assert len(Recorder.asked) > 50, "the recorder saw nothing"
    read = Recorder.asked | set(deepspeeds._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    read |= {"sequence_parallel_size"}  # looked up where a process group is there
    assert read == set(TOP_LEVEL_KEYS) - {"msam"}


def test_every_key_of_zero_has_a_fate() -> None:
    from deepspeed.runtime import config as deepspeeds
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    names = {
        name
        for field, info in DeepSpeedZeroConfig.model_fields.items()
        for name in (field, info.alias or field)
    }
    assert set(ZERO_KEYS) == names | set(deepspeeds._REMOVED_ZERO_CONFIG_KEYS)
    for name, model in [
        ("offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig),
        ("offload_param", DeepSpeedZeroOffloadParamConfig),
    ]:
        assert set(OFFLOAD_KEYS[name]) == set(model.model_fields)


def test_what_keys_are_translated_into_exists() -> None:
    for fate in TOP_LEVEL_KEYS.values():
        if isinstance(fate, Translated):
            assert set(fate.into) <= set(all_keys())


SAMPLE = {"flag": True, "count": 7, "text": "warning", "mapping": {}}


def refused_value(fate: Refused) -> Any:
    """Some value that the fate refuses."""
    candidates = (True, False, {"enabled": True}, "bf16", 3)
    return next(value for value in candidates if not fate.unless(value))


@pytest.mark.parametrize(("key", "fate"), TOP_LEVEL_KEYS.items())
def test_the_fate_of_every_top_level_key(key: str, fate: Fate) -> None:
    if isinstance(fate, PassedOn):
        config = load(zero_optimization=zero(1), **{key: SAMPLE[fate.kind]})
        assert config.sharding.deepspeed == {key: SAMPLE[fate.kind]}
        settings = engine_settings(config, world_size=1, chunk_samples=2)
        assert settings[key] == SAMPLE[fate.kind]
        assert "has no effect without ZeRO" in refusal(**{key: SAMPLE[fate.kind]})
        assert f"{key}: [] is a list" in refusal(zero_optimization=zero(1), **{key: []})
    elif isinstance(fate, Refused):
        line = refusal(**{key: refused_value(fate)})
        assert line.startswith(f"config: {key}: ")
        assert fate.reason in line
    else:
        with pytest.raises(ConfigError, match=rf"config: {key}.*: "):
            load(**{key: object()})


@pytest.mark.parametrize(
    "neutral",
    [
        {"communication_data_type": "fp32"},
        {"data_types": {"grad_accum_dtype": "fp32"}},
        {"prescale_gradients": False, "gradient_predivide_factor": 1.0},
        {"wall_clock_breakdown": False, "memory_breakdown": False, "dump_state": False},
        {"flops_profiler": {"enabled": False, "profile_step": 1}},
        {"zero_allow_untested_optimizer": True},
        {"wandb": {"enabled": False}, "csv_monitor": {"enabled": False}},
        {"activation_checkpointing": {"partition_activations": False, "profile": False}},
        {"gradient_allreduce_op": "mean", "dataloader_drop_last": True},
        {"bf16": {"enabled": False}, "fp16": {"enabled": False}},
        {"tensorboard": {"enabled": False}, "gradient_clipping": 0},
    ],
)
def test_what_asks_for_nothing_changes_nothing(neutral: dict[str, Any]) -> None:
    assert load(**neutral) == load()


@pytest.mark.parametrize(("key", "fate"), ZERO_KEYS.items())
def test_the_fate_of_every_key_of_zero(key: str, fate: Fate) -> None:
    if isinstance(fate, PassedOn):
        value = SAMPLE[fate.kind]
        config = load(zero_optimization=zero(3, **{key: value}))
        assert config.sharding.deepspeed == {"zero_optimization": {key: value}}
        settings = engine_settings(config, world_size=1, chunk_samples=2)
        assert settings["zero_optimization"][key] == value
        wrong = refusal(zero_optimization=zero(3, **{key: []}))
        assert f"zero_optimization.{key}: [] is a list" in wrong
        assert "has no effect without ZeRO" in refusal(zero_optimization=zero(0, **{key: value}))
    elif isinstance(fate, Refused):
        candidates = (True, False, 4, None, "x")
        value = next(one for one in candidates if not fate.unless(one))
        line = refusal(zero_optimization=zero(2, **{key: value}))
        assert line.startswith(f"config: zero_optimization.{key}: ")
        assert fate.reason in line


def test_what_deepspeed_is_handed_is_what_its_own_classes_take() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for key, fate in ZERO_KEYS.items():
        if isinstance(fate, PassedOn):
            stage = 1 if key == "compute_grad_norm" else 3
            DeepSpeedZeroConfig(stage=stage, **{key: SAMPLE[fate.kind]})
