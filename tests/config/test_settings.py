"""Which settings there are, where they come from, and that they survive being written out."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from config_tables import assert_refused, table
from hypothesis import given
from hypothesis import strategies as st

from launch.cli import main
from msam_scale.config import ConfigError, load_config
from msam_scale.config.describe import json_schema
from msam_scale.config.document import markdown_table
from msam_scale.config.keys import all_keys
from msam_scale.config.plan_checks import shard_group_size
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


def test_the_keys_and_their_defaults_are_the_interface() -> None:
    """A change here breaks other people's files, or what their runs compute."""
    expected = table("defaults.yaml")
    assert load_config(GOOD).to_dict() == expected
    assert load_config(expected) == load_config(GOOD)


def test_the_reference_has_a_row_for_every_setting() -> None:
    rows = markdown_table().splitlines()[2:]
    cells = [[cell.strip(" `") for cell in row.split(" | ")] for row in rows]
    keys = [f"{row[0][2:].strip('`')}.{row[1]}".lstrip(".") for row in cells]
    assert keys == list(all_keys())
    assert all(row[2] and row[3] and row[4].strip(" |") for row in cells)
    assert {len(row) for row in cells} == {5}
    by_key = {key: row[2:4] for key, row in zip(keys, cells, strict=True)}
    assert by_key["objective.rho"] == ["a number ≥ 0, or a list of a number ≥ 0", "0.05"]
    assert by_key["batch.size"] == ["a whole number ≥ 1", "required"]
    assert by_key["objective.phases"][0] == "a list of mappings with the keys until and algorithm"
    undocumented = [name for name, field in fields(json_schema()) if not field.get("description")]
    assert undocumented == []


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inner in {"Config": schema, **schema["$defs"]}.items():
        for key, field in inner.get("properties", {}).items():
            yield f"{name}.{key}", field


def test_yaml_json_and_dict_are_equal_and_the_file_names_the_run(tmp_path: Path) -> None:
    data = {**GOOD, "optimizer": {"lr": 0.001, "args": {"nesterov": True}}}
    from_yaml = load_config(write(tmp_path / "vit-small.yaml", YAML))
    assert from_yaml.run.name == "vit-small"
    assert from_yaml.optimizer.lr == 0.001
    # Editors of another system put a mark in front.
    assert from_yaml == load_config(write(tmp_path / "vit-small.json", "\ufeff" + json.dumps(data)))
    assert from_yaml == load_config({**data, "run": {"name": "vit-small"}})
    assert (
        load_config(tmp_path / "vit-small.yaml", overrides=["run.name=other"]).run.name == "other"
    )
    assert load_config({**GOOD, "run": None}).run.name == "run"


def test_a_config_is_not_changed_after_loading_and_loading_changes_no_dict() -> None:
    source = {"batch": {"size": 64}, "objective": {"micro_batches": 8}}
    config = load_config(source, overrides=["batch.size=128", "model.args.depth=3"])
    assert config.batch.size == 128
    assert source == GOOD
    with pytest.raises(ValueError, match="frozen"):
        config.batch.size = 1


def test_a_whole_number_is_a_number() -> None:
    config = load_config({**GOOD, "objective": {"micro_batches": 8, "rho": 1}})
    assert type(config.objective.rho) is float


def test_overrides_reach_every_depth_and_the_last_one_stands() -> None:
    overrides = [
        "model.args.depth=10",
        "optimizer.args.nesterov=true",
        "precision=float64",
        "optimizer.lr=1e-2",
        "optimizer.lr=1e-3",
        "model.args={width: 2}",
        "model.args.name=a=b",
        "data.val=",
    ]
    config = load_config({**GOOD, "data": {"val": "val"}}, overrides=overrides)
    assert config.model.args == {"width": 2, "name": "a=b"}
    assert config.optimizer.args == {"nesterov": True}
    assert (config.precision, config.optimizer.lr, config.data.val) == ("float64", 1e-3, None)


def test_what_is_wrong_names_its_file_or_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "run.yaml", YAML + "monitor: {every: 0}\ntraining: {steps: 9}\n")
    words = ["optimizer.lr=-1", "nothing", "objective.rho=[1, -2]", "schedule.warmup=9"]
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=words)
    assert [(problem.source, problem.key) for problem in caught.value.problems] == [
        ("command line", "objective.rho[1]"),
        ("command line", "optimizer.lr"),
        (str(path), "monitor.every"),
        ("command line", "schedule.warmup"),
        ("command line", ""),
    ]
    assert main(["config", "check", str(path)]) == 2
    error = f"msam-scale: {path}: monitor.every: 0 is below 1; a whole number ≥ 1 works\n"
    assert capsys.readouterr().err == error
    copy = pickle.loads(pickle.dumps(caught.value))  # as on its way to another process
    assert (copy.problems, str(copy)) == (caught.value.problems, str(caught.value))


def test_who_holds_a_copy_of_the_parameters() -> None:
    for strategy, alone, in_groups in [
        ("replicated", 1, 1),
        ("zero1", 1, 1),
        ("zero2", 1, 1),
        ("fsdp", 4, 2),
        ("zero3", 4, 2),
    ]:
        assert shard_group_size(strategy, shard_group=None, world_size=4) == alone
        assert shard_group_size(strategy, shard_group=2, world_size=4) == in_groups


def test_check_tells_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "run.yaml", YAML))
    assert main(["config", "check", path, "--nproc", "4", "sharding.strategy=fsdp"]) == 0
    assert "1 group of 4 ranks, each with 8 micro-batches of 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "batch: {size: 64\nx: [", "line 2, column 2: not valid YAML: …"),
        ("a.yaml", "b: 1\nb: 2", "line 2, column 1: not valid YAML: the key 'b' is given twice"),
        ("a.yaml", "batch: {1: 1, 1: 2}", "line 1, column 15: not valid YAML: the key '1' is …"),
        ("a.yaml", "batch: \x07", "line 1, column 8: not valid YAML: …"),
        ("a.yaml", "a: 1\n---\nb: 2", "line 2, column 1: not valid YAML: …"),
        ("a.yml", "- 1", "holds a list; a mapping of sections works, such as `batch: {size: 64}`"),
        ("a.yaml", "", "is empty; a mapping of sections works, such as `batch: {size: 64}`"),
        ("a.json", '{"batch":\n {"size": }}', "line 2, column 11: not valid JSON: …"),
        ("a.json", '{"b": {"size": NaN}}', "cannot be understood: NaN is not a JSON number; …"),
        ("a.json", "3", "holds a whole number; …"),
        ("a.toml", "x = 1", "is not named like a config; .yaml, .yml, .json files work"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused_in_one_line(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, text)
    assert_refused(f"{path}: {said}", load_config, path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xe9}")
    for name, said in [
        ("missing.yaml", "cannot be read: No such file or directory; …"),
        ("folder.yaml", "cannot be read: Is a directory; …"),
        ("latin.yaml", "byte 12 is not UTF-8 text; save the file as UTF-8"),
    ]:
        assert_refused(f"{tmp_path / name}: {said}", load_config, tmp_path / name)


SCALARS: dict[str, Any] = {"1e-3": 1e-3, "1E5": 1e5, ".5": 0.5, "+1.": 1.0, "-7": -7, "010": 10}
SCALARS |= {"0o10": 8, "0x1F": 31, "True": True, "~": None, "": None}
TEXTS = ["no", "1:30", "1_000", "1e-3x", "2024-01-01", "=", "<<", "'", "- a", "a: b", "\x85", "\n"]


def test_scalars_follow_yaml_1_2() -> None:
    for text, value in SCALARS.items():
        read = read_yaml(text)
        assert (read, type(read)) == (value, type(value)), text
    for text in TEXTS[:5]:
        assert read_yaml(text) == text
    for text in [*SCALARS, *TEXTS]:
        assert read_yaml(write_yaml({"x": text})) == {"x": text}
        assert read_yaml(write_yaml({text: [text]})) == {text: [text]}
    # Merge keys are not taken for keys given twice.
    merged = read_yaml("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}")
    assert merged["c"] == {"x": 3, "y": 4}


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(
    args=st.dictionaries(texts, plain, max_size=3),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**63 - 1),
    train=texts,
)
def test_a_written_config_loads_to_an_equal_one(
    args: dict[str, Any], lr: float, seed: int, train: str
) -> None:
    optimizer = {"lr": lr, "args": args}
    config = load_config(
        {**GOOD, "optimizer": optimizer, "run": {"seed": seed}, "data": {"train": train}}
    )
    assert load_config(read_yaml(config.to_yaml())) == config
