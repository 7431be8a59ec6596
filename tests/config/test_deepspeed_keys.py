"""Every key of a DeepSpeed config has a fate, and meets it."""

from __future__ import annotations

from typing import Any

from config_tables import assert_refused, table
from deepspeed_configs import load, zero

from msam_scale.config.deepspeed.engine_settings import engine_settings
from msam_scale.config.deepspeed.top_level_keys import TOP_LEVEL_KEYS
from msam_scale.config.deepspeed.zero_keys import OFFLOAD_KEYS, ZERO_KEYS

TABLE = table("deepspeed_keys.yaml")
TRANSLATED, PASSED_ON, REFUSED = TABLE["translated"], TABLE["passed on"], TABLE["refused"]
STAGE_3 = TABLE["passed on at stage 3"]
PASSED_ON_TO_ZERO = {
    **TABLE["passed on to zero"],
    **STAGE_3,
    **{f"stage3_{key}": value for key, value in STAGE_3.items()},
}
REFUSED_BY_ZERO = TABLE["refused by zero"]
OFFLOAD = ("offload_optimizer", "offload_param")
# Values above that DeepSpeed takes anyway: without ZeRO they ask for nothing.
DEFAULTS = set(TABLE["defaults"])


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


def test_the_keys_are_those_that_deepspeed_looks_for() -> None:
    from deepspeed.runtime import config as deepspeeds

    Recorder.asked = set()
    deepspeeds.DeepSpeedConfig(Recorder(train_batch_size=1))
    assert len(Recorder.asked) > 50, "the recorder saw nothing"
    read = Recorder.asked | set(deepspeeds._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    read |= {"sequence_parallel_size"}  # looked up where a process group is there
    assert read == {*TRANSLATED, *PASSED_ON, *REFUSED} - {"msam"}
    assert set(TOP_LEVEL_KEYS) == {*TRANSLATED, *PASSED_ON, *REFUSED}


def test_the_keys_of_zero_are_deepspeeds() -> None:
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
    names |= set(deepspeeds._REMOVED_ZERO_CONFIG_KEYS)
    assert names == {"stage", *PASSED_ON_TO_ZERO, *REFUSED_BY_ZERO} == set(ZERO_KEYS)
    for name, model in [
        ("offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig),
        ("offload_param", DeepSpeedZeroOffloadParamConfig),
    ]:
        known = {"pin_memory", *TABLE[f"refused in {name}"]}
        assert known == set(OFFLOAD_KEYS[name]) == set(model.model_fields)
    # What DeepSpeed is handed is what its own classes take.
    for key, value in PASSED_ON_TO_ZERO.items():
        DeepSpeedZeroConfig(stage=3, **{key: value})


def test_what_is_passed_on_reaches_deepspeed_as_it_is() -> None:
    for key, value in PASSED_ON.items():
        config = load(zero_optimization=zero(1), **{key: value})
        assert config.sharding.deepspeed == {key: value}
        assert engine_settings(config, world_size=1, chunk_samples=2)[key] == value
        assert_refused(
            f"config: {key}: [] is a list; …", load, **{key: []}, zero_optimization=zero(1)
        )
        if key not in DEFAULTS:
            assert_refused(f"config: {key}: has no effect without ZeRO; …", load, **{key: value})
    for key, value in PASSED_ON_TO_ZERO.items():
        config = load(zero_optimization=zero(3, **{key: value}))
        assert config.sharding.deepspeed == {"zero_optimization": {key: value}}
        settings = engine_settings(config, world_size=1, chunk_samples=2)
        assert settings["zero_optimization"] == {"stage": 3, key: value}
        place = f"config: zero_optimization.{key}"
        assert_refused(f"{place}: [] is a list; …", load, zero_optimization=zero(3, **{key: []}))
        if key not in DEFAULTS:
            line = f"{place}: has no effect without ZeRO; …"
            assert_refused(line, load, zero_optimization=zero(0, **{key: value}))
        assert load(zero_optimization=zero(3, **{key: None})) == load(zero_optimization=zero(3))


def test_what_is_refused_is_named_unless_it_asks_for_nothing() -> None:
    for key, (value, *neutral) in REFUSED.items():
        assert_refused(f"config: {key}: …", load, **{key: value})
        assert all(load(**{key: one}) == load() for one in neutral), key
    for neutral_section in (
        {"bf16": {"enabled": False}, "fp16": {"enabled": False, "hysteresis": 3}},
        {"tensorboard": {"enabled": False}, "gradient_clipping": 1.0, "zero_optimization": zero(0)},
    ):
        assert load(**neutral_section) == load()


def test_what_is_refused_of_zero_is_named_unless_it_asks_for_nothing() -> None:
    without = load(zero_optimization=zero(2))
    for key, (value, *neutral) in REFUSED_BY_ZERO.items():
        line = f"config: zero_optimization.{key}: …"
        assert_refused(line, load, zero_optimization=zero(2, **{key: value}))
        assert all(load(zero_optimization=zero(2, **{key: one})) == without for one in neutral), key
    for name in OFFLOAD:
        for key, (value, *neutral) in TABLE[f"refused in {name}"].items():
            line = f"config: zero_optimization.{name}.{key}: …"
            section = {name: {"device": "cpu", key: value}}
            assert_refused(line, load, zero_optimization=zero(3, **section))
            for one in neutral:
                section = {name: {"device": "cpu", key: one}}
                config = load(zero_optimization=zero(3, **section))
                device = {"device": section[name]["device"]}
                assert config.sharding.deepspeed == {"zero_optimization": {name: device}}
