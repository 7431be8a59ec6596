"""Every mistake is refused in one line that names the key; several are named together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from launch.cli import main
from msam_scale.config import ConfigError, load_config
from msam_scale.config.keys import all_keys, nested

GOOD: dict[str, Any] = {"batch.size": 64, "objective.micro_batches": 8}

# (settings beside the good ones, the key that is named, a part of what is said about it)
MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"batch.size": "64"}, "batch.size", "'64' is text"),
    ({"batch.size": 0}, "batch.size", "0 is below 1"),
    ({"batch.size": 64.0}, "batch.size", "64.0 is a number"),
    ({"batch.size": True}, "batch.size", "true is a boolean"),
    ({"batch.size": None}, "batch.size", "null"),
    ({"batch.size": 60}, "objective.micro_batches", "56, 64"),
    ({"batch.chunk": 12, "batch.norm_samples": 8}, "batch.chunk", "8 or 16"),
    ({"batch.norm_samples": 3}, "batch.norm_samples", "1, 2 or 4"),
    ({"objective.algorithm": "msm"}, "objective.algorithm", "'vanilla', 'sam' or 'msam'"),
    ({"objective.rho": -0.1}, "objective.rho", "-0.1 is below 0"),
    ({"objective.rho": "small"}, "objective.rho", "'small' is text"),
    ({"objective.micro_batches": None}, "objective.micro_batches", "paper's m"),
    ({"objective.algorithm": "sam"}, "objective.micro_batches", "leave it out"),
    ({"objective.algorithm": "vanilla", "objective.rho": 0.1}, "objective.rho", "no effect"),
    ({"objective.phases": [{"until": 1.5, "algorithm": "sam"}]}, "objective.phases[0].until", "1"),
    ({"run.name": "a/b"}, "run.name", "plain folder name"),
    ({"run.name": ".."}, "run.name", "plain folder name"),
    ({"run.seed": 2**63}, "run.seed", "above"),
    ({"model.name": ""}, "model.name", "empty"),
    ({"model.pretrained": True, "model.source": "msam_scale"}, "model.pretrained", "without"),
    ({"model.pretrained": True, "model.weights": "w"}, "model.weights", "model.pretrained"),
    ({"model.args": [1]}, "model.args", "[1] is a list; a mapping works"),
    ({"data.cache_limit": 5}, "data.cache_limit", "without data.cache_dir"),
    ({"optimizer.lr": -1}, "optimizer.lr", "below 0"),
    ({"optimizer.momentum": 1}, "optimizer.momentum", "not below 1"),
    ({"schedule.warmup": 1.0}, "schedule.warmup", "a whole number"),
    ({"schedule.warmup": 10, "training.steps": 10}, "schedule.warmup", "at most 9"),
    ({"training.steps": 5, "training.epochs": 5}, "training.steps", "training.epochs"),
    ({"training.eval_every": 5}, "training.eval_every", "without data.val"),
    ({"training": 5}, "training", "5 is a whole number; a mapping works"),
    ({"sharding.offload": True}, "sharding.offload", "no effect"),
    ({"sharding.deepspeed": 3}, "sharding.deepspeed", "text, a mapping, or null works"),
    ({"precision": "float8"}, "precision", "'bfloat16'"),
    ({"checkpoint.async": "yes"}, "checkpoint.async", "true or false"),
    ({"checkpoint.asynchronous": True}, "checkpoint.asynchronous", "async"),
    ({"rho": 0.1}, "rho", "did you mean objective.rho?"),
    ({"m": 8}, "m", "did you mean objective.micro_batches?"),
    ({"batch.micro_batch": 8}, "batch.micro_batch", "did you mean objective.micro_batches?"),
    ({"objective.roh": 0.1}, "objective.roh", "did you mean objective.rho?"),
    ({"optimizer.size": 0.1}, "optimizer.size", "did you mean batch.size?"),
    ({"training.every": 1}, "training.every", "checkpoint.every or monitor.every"),
    ({"objectives": {}}, "objectives", "did you mean objective?"),
    ({"monitor.zzz": 1}, "monitor.zzz", "loss_spike, sharpness_every, sharpness_samples and pro"),
]


@pytest.mark.parametrize(("settings", "key", "said"), MISTAKES)
def test_a_mistake_exits_with_2_and_names_its_key(
    settings: dict[str, Any],
    key: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(nested({**GOOD, **settings})))

    assert main(["config", "check", str(path)]) == 2

    error = capsys.readouterr().err
    assert error.count("\n") == 1, "one mistake, one line"
    assert error.startswith(f"msam-scale: {path}: {key}: ")
    assert said in error
    assert "Traceback" not in error


def test_the_table_starts_from_a_good_config() -> None:
    load_config(nested(GOOD))


def test_two_mistakes_are_both_named() -> None:
    keys = keys_of({"batch.size": "x", "optimizer.lr": -1})
    assert keys == ["batch.size", "optimizer.lr"]


def test_schema_unknown_key_and_rule_are_named_together() -> None:
    # The rule about steps and epochs reads neither of the bad keys, so it still runs.
    keys = keys_of(
        {"batch.size": "x", "objective.roh": 1, "training.steps": 5, "training.epochs": 5}
    )
    assert sorted(keys) == ["batch.size", "objective.roh", "training.steps"]


def test_a_rule_does_not_run_on_a_bad_key() -> None:
    # A default for the bad `algorithm` would make `micro_batches` look missing.
    settings = {"objective.algorithm": "x", "objective.micro_batches": None}
    assert keys_of(settings) == ["objective.algorithm"]


def test_a_missing_required_key_is_named_with_the_rest() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"objective": {"micro_batches": 8}, "data": {"cache_limit": 1}})
    assert [problem.key for problem in caught.value.problems] == ["batch.size", "data.cache_limit"]


@pytest.mark.parametrize("wrong", [{"batch": {"sise": 64}}, {"batchs": {"size": 64}}])
def test_what_a_misspelled_key_stands_for_is_not_missing_as_well(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"objective": {"micro_batches": 8}, **wrong})
    assert len(caught.value.problems) == 1
    assert "did you mean batch" in str(caught.value)


def test_several_problems_are_a_header_and_one_line_each() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(nested({**GOOD, "batch.size": 0, "rho": 1}))
    assert str(caught.value).splitlines() == [
        "2 problems in the config",
        "  config: batch.size: 0 is below 1; a whole number ≥ 1 works",
        "  config: rho: is not a key; did you mean objective.rho?",
    ]


@pytest.mark.parametrize("value", [(0.9, 0.999), {1: 2}, {1, 2}, float("nan"), b"x"])
def test_what_a_file_could_not_hold_is_refused_in_arguments(value: object) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.args"):
        load_config({**nested(GOOD), "optimizer": {"args": {"betas": value}}})


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigError, match="contains itself"):
        load_config({**nested(GOOD), "model": {"args": {"x": endless}}})


def keys_of(settings: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(nested({**GOOD, **settings}))
    return [problem.key for problem in caught.value.problems]


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
@hypothesis_settings(max_examples=200)
def test_whatever_is_given_only_ends_in_problems_of_one_line(
    source: dict[Any, Any], overrides: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({**source, "unknown": 1}, overrides=overrides)
    for problem in caught.value.problems:
        assert "\n" not in str(problem), problem
