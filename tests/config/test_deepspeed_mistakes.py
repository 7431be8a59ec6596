"""What a DeepSpeed config is refused for, in one line that names DeepSpeed's key."""

from __future__ import annotations

from typing import Any

import pytest
from config_tables import assert_refused, table
from deepspeed_configs import GOOD, OURS, load, with_section, zero
from hypothesis import given
from hypothesis import strategies as st

from msam_scale.config import ConfigError, load_config
from msam_scale.config.deepspeed.top_level_keys import TOP_LEVEL_KEYS

TABLE = table("deepspeed_mistakes.yaml")


@pytest.mark.parametrize("row", TABLE["refused"])
def test_a_refusal_names_the_key_of_deepspeed_and_what_works(row: list[Any]) -> None:
    keys, line, *ranks = row
    assert_refused(
        f"config: {line}", load_config, {**GOOD, **keys}, world_size=ranks[0] if ranks else None
    )


@pytest.mark.parametrize("row", TABLE["refused section"])
def test_what_both_decide_has_to_agree(row: list[Any]) -> None:
    section, line, *ranks = row
    world_size = ranks[0] if ranks else None
    assert_refused(f"config: {line}", load_config, with_section(section), world_size=world_size)


def test_without_an_msam_section_it_says_to_add_one() -> None:
    line = (
        "config: msam: is missing from this DeepSpeed config; a section that says how works: "
        '"msam": {"micro_batches": 8, "rho": 0.05}'
    )
    assert_refused(line, load_config, {"train_batch_size": 64, "fp16": {"enabled": True}})


def test_a_config_of_ours_is_not_taken_for_deepspeeds() -> None:
    load_config({**OURS, "optimizer": {"name": "adamw"}, "checkpoint": {"keep": 1}})
    line = "config: train_batch_size: is not a key; …"
    assert_refused(line, load_config, {**OURS, "train_batch_size": 64})


def test_what_is_off_there_is_off_here() -> None:
    config = {**with_section({"bf16": {"enabled": False}}), "precision": "bfloat16"}
    line = "sharding.deepspeed.bf16.enabled: false contradicts precision: bfloat16; …"
    assert_refused(f"config: {line}", load_config, config)
    section = {"zero_optimization": {"offload_optimizer": {"device": "none"}}}
    place = "sharding.deepspeed.zero_optimization.offload_optimizer.device"
    line = f"config: {place}: 'none' contradicts sharding.offload: true; …"
    assert_refused(line, load_config, with_section(section, offload=True))


def test_the_loss_scale_of_both_has_to_agree() -> None:
    config = with_section({"fp16": {"enabled": True, "hysteresis": 4}})
    config["precision"] = "float16"
    line = (
        'config: sharding.deepspeed.fp16: means training.loss_scale: {"hysteresis": 4}, but '
        'training.loss_scale is {"hysteresis": 2}; …'
    )
    assert_refused(line, load_config, config)
    load_config({**config, "training": {"loss_scale": {"hysteresis": 4, "window": 9}}})


def test_a_file_that_is_not_there_is_refused() -> None:
    line = "config: sharding.deepspeed: none.json: cannot be read: No such file or directory; …"
    assert_refused(line, load_config, with_section("none.json"))


def test_several_mistakes_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            fp16={"enabled": True, "x": 1},
            gradient_clipping="big",
            pipeline={"stages": 2},
            zero_optim={},
        )
    keys = [problem.key for problem in caught.value.problems]
    assert sorted(keys) == ["fp16.x", "gradient_clipping", "pipeline", "zero_optim"]


def test_a_mistake_is_one_problem_though_others_would_follow_from_it() -> None:
    """What it leads to is neither missing nor checked at a default."""
    for keys in (
        {"train_batch_size": "x"},
        {"train_batch_size": 60.0, "msam": {"micro_batches": 7}},
        {"zero_optimization": {"stage": 9, "overlap_comm": True}},
        {"msam": {"micro_batchs": 8}},
        {"scheduler": {"type": "WarmupDecay", "params": {"x": 1}}},
        {"optimizer": {"type": "Lion"}, "zero_optimization": {"stage": 0}},
    ):
        with pytest.raises(ConfigError) as caught:
            load_config({**GOOD, **keys}, for_training=False)
        assert len(caught.value.problems) == 1, str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["x"] = endless
    with pytest.raises(ConfigError, match="contains itself"):
        load(comms_logger=endless, zero_optimization=zero(1))


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "params", "enabled", "stage", "lr", "x"]), inner)
    ),
    max_leaves=6,
)


@given(
    source=st.dictionaries(st.sampled_from([*TOP_LEVEL_KEYS, "batch", "x"]), junk, max_size=5),
    section=st.none() | st.fixed_dictionaries({"strategy": st.just("zero3"), "deepspeed": junk}),
)
def test_whatever_is_given_only_ends_in_problems_of_one_line(
    source: dict[str, Any], section: dict[str, Any] | None
) -> None:
    ours = {} if section is None else {**OURS, "sharding": section}
    with pytest.raises(ConfigError) as caught:
        load_config({**source, "unknown": 1, **ours})
    for problem in caught.value.problems:
        assert "\n" not in str(problem), problem
