"""What loads, from where, and that it survives being written out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msam_scale.config import Config, ConfigError, load_config
from msam_scale.config.yaml_text import read_yaml, write_yaml

GOOD: dict[str, Any] = {"batch": {"size": 64}, "objective": {"micro_batches": 8}}
YAML = """
# YAML 1.2: 1e-3 is a number
batch: {size: 64}
objective:
  micro_batches: 8
optimizer: {lr: 1e-3, args: {nesterov: true}}
data:   # everything in here is commented out
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_and_json_and_dict_are_equal(tmp_path: Path) -> None:
    data = {**GOOD, "optimizer": {"lr": 0.001, "args": {"nesterov": True}}}
    from_yaml = load_config(write(tmp_path / "run.yaml", YAML))
    assert from_yaml == load_config(write(tmp_path / "run.json", json.dumps(data)))
    assert from_yaml == load_config({**data, "run": {"name": "run"}})
    assert from_yaml.optimizer.lr == 0.001


def test_the_run_is_named_after_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "vit-small.yaml", YAML)
    assert load_config(path).run.name == "vit-small"
    assert load_config(path, overrides=["run.name=other"]).run.name == "other"
    assert load_config(GOOD).run.name == "run"


def test_a_config_is_not_changed_after_loading_and_loading_changes_no_dict() -> None:
    source = {"batch": {"size": 64}, "objective": {"micro_batches": 8}}
    config = load_config(source, overrides=["batch.size=128", "model.args.depth=3"])
    assert config.batch.size == 128
    assert source == GOOD
    with pytest.raises(ValueError, match="frozen"):
        config.batch.size = 1


def test_overrides_reach_every_depth_and_the_last_one_stands() -> None:
    overrides = [
        "model.args.depth=10",
        "optimizer.args.nesterov=true",
        "precision=float64",
        "optimizer.lr=1e-2",
        "optimizer.lr=1e-3",
        "model.args={width: 2}",
        "model.args.name=a=b",
    ]
    config = load_config(GOOD, overrides=overrides)
    assert config.model.args == {"width": 2, "name": "a=b"}
    assert config.optimizer.args == {"nesterov": True}
    assert (config.precision, config.optimizer.lr) == ("float64", 1e-3)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("batch.size=x", "command line: batch.size: 'x' is text; a whole number ≥ 1 works"),
        ("objective.roh=1", "command line: objective.roh: is not a key; did you mean"),
        ("objectve.roh=1", "command line: objectve.roh: is not a key; did you mean objective.rho"),
        ("batch.size", "command line: 'batch.size' does not set anything; section.key=value works"),
        ("batch=3", "command line: batch: is a whole section"),
        ("precision=float8", "command line: precision: 'float8'"),
        ("data.val=[", "command line: data.val: '[' cannot be read: line 1, column 2"),
        ("model.args.a.b=1", "command line: model.args.a.b: cannot be set, because model.args.a"),
        ("model.args.x=.nan", "command line: model.args.x: NaN is not a finite number"),
        ("objective.micro_batches=7", "command line: objective.micro_batches: a mini-batch of 64"),
    ],
)
def test_a_wrong_override_is_named_as_the_command_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({**GOOD, "model": {"args": {"a": 1}}}, overrides=[override])
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(line)


def test_problems_of_file_and_command_line_come_together(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", YAML + "monitor: {every: 0}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=["optimizer.lr=-1", "nothing"])
    sources = [problem.source for problem in caught.value.problems]
    assert sources == ["command line", str(path), "command line"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "batch: {size: 64\nx: [", "line 2, column 2: not valid YAML"),
        (
            "a.yaml",
            "batch: {size: 1}\nbatch: {size: 2}",
            "line 2, column 1: not valid YAML: the ke",
        ),
        ("a.yaml", "batch: {size: 1, size: 2}", "the key 'size' is given twice"),
        ("a.yaml", "batch: !!python/object:os.system {}", "could not determine a constructor"),
        ("a.yaml", "batch: \x07", "line 1, column 8: not valid YAML"),
        ("a.yaml", "a: 1\n---\nb: 2", "line 2, column 1: not valid YAML"),
        ("a.yaml", "- 1", "holds a list; a mapping of sections works"),
        ("a.yaml", "", "is empty; a mapping of sections works"),
        ("a.yaml", "[" * 5000, "nested too deeply"),
        ("a.json", '{"batch":\n {"size": }}', "line 2, column 11: not valid JSON"),
        ("a.json", '{"batch": {"size": 1, "size": 2}}', "the key 'size' is given twice"),
        ("a.json", '{"batch": {"size": NaN}}', "NaN is not a JSON number"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", "3", "holds a whole number"),
        ("a.toml", "x = 1", "is not named like a config; .yaml, .yml, .json files work"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused_in_one_line(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xe9}")
    for name, said in [
        ("missing.yaml", "No such file"),
        ("folder.yaml", "Is a directory"),
        ("latin.yaml", "byte 12 is not UTF-8"),
    ]:
        with pytest.raises(ConfigError, match=said):
            load_config(tmp_path / name)


def test_an_error_survives_the_way_to_another_process() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({})
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.problems, str(copy)) == (caught.value.problems, str(caught.value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("+1.", 1.0),
        ("-7", -7),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("True", True),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("1e-3x", "1e-3x"),
        ("2024-01-01", "2024-01-01"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = read_yaml(text)
    assert (read, type(read)) == (value, type(value))


def test_merge_keys_are_not_taken_for_keys_given_twice() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}"
    assert read_yaml(text)["c"] == {"x": 3, "y": 4}


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.sampled_from(
    ["1e5", "no", "null", "0o7", "010", "1:30", "~", "=", "<<", "2024-01-01", "'", "- a"]
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(
    args=st.dictionaries(texts, plain, max_size=3),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    warmup=st.integers(0, 10**6) | st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63 - 1),
    train=texts,
)
def test_a_written_config_loads_to_an_equal_one(
    args: dict[str, Any], lr: float, warmup: float, seed: int, train: str
) -> None:
    config = load_config(
        {
            **GOOD,
            "optimizer": {"lr": lr, "args": args},
            "schedule": {"warmup": warmup},
            "run": {"seed": seed},
            "data": {"train": train},
        }
    )
    assert load_config(read_yaml(config.to_yaml())) == config
    assert load_config(json.loads(json.dumps(config.to_dict()))) == config
    assert load_config(config) == config
    assert type(read_yaml(config.to_yaml())["schedule"]["warmup"]) is type(warmup)


@given(data=st.dictionaries(texts, plain, max_size=3))
def test_yaml_reads_back_as_it_was_written(data: dict[str, Any]) -> None:
    assert read_yaml(write_yaml(data)) == data


def test_every_algorithm_loads_again_from_its_own_dump() -> None:
    for objective in ({"algorithm": "vanilla"}, {"algorithm": "sam"}, {"micro_batches": 8}):
        config = load_config({"batch": {"size": 64}, "objective": objective})
        dump = config.to_yaml()
        assert load_config(read_yaml(dump)) == config
        assert "async: false" in dump
        assert isinstance(config, Config)
