"""Every mistake is refused in one line that names the key, the value and what works."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from config_tables import assert_refused, table
from hypothesis import given
from hypothesis import strategies as st

from msam_scale.batch_plan import BatchPlan
from msam_scale.config import Config, ConfigError, check_config, check_for_training, load_config
from msam_scale.config.keys import STAND_INS, all_keys, nested
from msam_scale.config.suggestions import OTHER_NAMES, WAYS
from msam_scale.errors import UserError

GOOD: dict[str, Any] = {"batch.size": 64, "objective.micro_batches": 8}
TABLE = table("mistakes.yaml")


def load(settings: dict[str, Any], **options: Any) -> Config:
    return load_config(nested({**GOOD, **settings}), **options)


def keys_of(settings: dict[str, Any]) -> list[str]:
    """The keys that a config is refused for."""
    with pytest.raises(ConfigError) as caught:
        load(settings)
    return sorted(problem.key for problem in caught.value.problems)


@pytest.mark.parametrize(("settings", "line"), TABLE["refused"])
def test_a_mistake_is_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    assert_refused(f"config: {line}", load, settings)


def test_names_from_elsewhere_lead_to_keys_that_exist() -> None:
    assert set(OTHER_NAMES.values()) < set(all_keys())
    ours = {key.rpartition(".")[2] for key in all_keys()}
    assert not ours.intersection([*OTHER_NAMES, *WAYS]), "a key of ours goes by its own name"


@pytest.mark.parametrize(("settings", "line"), TABLE["refused on 4 ranks"])
def test_a_layout_that_does_not_work_is_refused(settings: dict[str, Any], line: str) -> None:
    assert_refused(f"config: {line}", load, settings, world_size=4)


@pytest.mark.parametrize(("override", "line"), TABLE["refused overrides"])
def test_a_wrong_override_is_named_as_the_command_line(override: str, line: str) -> None:
    source = {"model.args": {"a": 1}}
    assert_refused(f"command line: {line}", load, source, overrides=[override])


def test_what_goes_together_is_fine_before_and_on_ranks() -> None:
    for settings in TABLE["fine on 4 ranks"]:
        config = load(settings)
        assert load_config(config, world_size=4) == config, settings


def plan_refusal(count: int, world_size: int) -> str | None:
    try:
        BatchPlan(64, count, world_size)
    except UserError as error:
        return str(error)
    return None


def test_a_batch_is_refused_exactly_where_its_plan_is() -> None:
    for world_size, count in itertools.product((1, 2, 3, 6, 8), (1, 2, 3, 8, 12, 64)):
        settings, refusal = {"objective.micro_batches": count}, plan_refusal(count, world_size)
        if refusal is None:
            load(settings, world_size=world_size)
        else:
            line = f"config: objective.micro_batches: {refusal} …"
            assert_refused(line, load, settings, world_size=world_size)


def test_several_mistakes_are_a_header_and_one_line_each() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"batch.size": 0, "rho": 1})
    assert str(caught.value).splitlines() == [
        "2 problems in the config",
        "  config: batch.size: 0 is below 1; a whole number ≥ 1 works",
        "  config: rho: is not a key; did you mean objective.rho?",
    ]
    # The rule about steps and epochs reads none of the bad keys, so it still runs.
    wrong = {"batch.size": "x", "objective.roh": 1, "training.steps": 5, "training.epochs": 5}
    assert keys_of(wrong) == ["batch.size", "objective.roh", "training.steps"]


def test_one_mistake_is_one_line_though_others_would_follow_from_it() -> None:
    # A default for the bad `algorithm` would make `micro_batches` look missing.
    unknown = {"objective.algorithm": "x", "objective.micro_batches": None}
    assert keys_of(unknown) == ["objective.algorithm"]
    with_cache = {"objective": {"micro_batches": 8}, "data": {"cache_limit": 1}}
    with pytest.raises(ConfigError) as caught:
        load_config(with_cache)
    assert [problem.key for problem in caught.value.problems] == ["batch.size", "data.cache_limit"]
    misspelled: list[tuple[dict[str, Any], list[str]]] = [
        ({"batch": {"sise": 64}}, []),
        ({"batchs": {"size": 64}}, []),
        ({}, ["batch.size=x"]),
        ({}, ["batch.size=["]),
        ({}, ["batch.sise=64"]),
    ]
    for batch, overrides in misspelled:
        with pytest.raises(ConfigError) as caught:
            load_config({"objective": {"micro_batches": 8}, **batch}, overrides=overrides)
        assert len(caught.value.problems) == 1, str(caught.value)


def test_what_a_file_could_not_hold_is_refused_in_arguments() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for value, said in [
        ((0.9, 0.999), "[0.9, 0.999] is a Python tuple, which a config file cannot hold; finite"),
        (b"x", "b'x' is a Python bytes, which a config file cannot hold; finite numbers, text"),
        ({1: 2}, "1 is a key that is not text; the key in quotes works"),
        ([{"y": {None: 2}}], "null is a key that is not text; the key in quotes works"),
        (endless, "[[...]] contains itself; finite numbers, text, lists, mappings work"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load({"model.args": {"x": value}})
        (problem,) = caught.value.problems
        assert problem.key.startswith("model.args")
        assert problem.message.startswith(said)


@pytest.mark.parametrize(
    "key",
    [
        "model.weights",
        "run.dir",
        "run.name",
        "data.cache_dir",
        "sharding.deepspeed",
        "checkpoint.start_from",
        "monitor.deepspeed_tensorboard",
    ],
)
def test_paths_that_no_file_system_has_are_refused(key: str) -> None:
    said = "... is longer than a path can be: 4095 bytes, and 255 between two slashes"
    for path in ("ü" * 128, "/a" * 2048 if key != "run.name" else "a" * 256):
        assert_refused(f"config: {key}: '{path[:56]}{said}", load, {key: path})
    if key != "sharding.deepspeed":  # which is read at once
        load({key: "ü" * 127})


def test_training_needs_a_model_data_a_rate_and_a_length() -> None:
    needed = {"model.name": "vit", "data.train": "d", "optimizer.lr": 0.1, "training.epochs": 1}
    check_for_training(load(needed))
    load({**needed, "training.epochs": None, "training.steps": 3}, for_training=True)
    for key in needed:
        others = load({name: value for name, value in needed.items() if name != key})
        assert_refused(
            f"config: {key}: is missing, and training needs …", check_for_training, others
        )
        with pytest.raises(ConfigError, match=f"{key}: is missing"):
            load_config(others, for_training=True)


def test_a_config_built_in_python_can_be_checked() -> None:
    config = Config.model_validate(nested(GOOD))
    check_config(config, world_size=8)
    with pytest.raises(ConfigError, match=r"micro_batches: a mini-batch of 64"):
        check_config(config, world_size=7)


def test_every_required_setting_has_a_stand_in() -> None:
    required = {
        f"{name}.{inner.alias or key}"
        for name, section in Config.model_fields.items()
        for key, inner in getattr(section.annotation, "model_fields", {}).items()
        if inner.is_required()
    }
    assert required == set(STAND_INS)
    assert required < set(all_keys())


names = st.sampled_from(
    [name for key in all_keys() for name in key.split(".")] + ["m", "sise", "", "a.b"]
)
keys = names | st.none() | st.integers(-1, 2) | st.floats() | st.booleans()
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | names
junk = st.recursive(
    leaves | st.binary(max_size=1) | st.tuples(leaves),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(
    source=st.dictionaries(keys, st.dictionaries(keys, junk, max_size=4) | junk, max_size=4),
    overrides=st.lists(
        st.builds("{}.{}={}".format, names, names, st.text(max_size=4)) | st.text(max_size=9),
        max_size=2,
    ),
)
def test_whatever_is_given_only_ends_in_problems_of_one_line(
    source: dict[Any, Any], overrides: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({**source, "unknown": 1}, overrides=overrides)
    for problem in caught.value.problems:
        assert "\n" not in str(problem), problem
