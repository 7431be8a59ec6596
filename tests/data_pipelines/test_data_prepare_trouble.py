"""What goes wrong outside: places that cannot be used, failed starts, workers that cannot start."""

import os
import subprocess
import sys
from pathlib import Path

import archives
import pytest

import data_pipelines
from data_pipelines import DATASETS, UserError, prepare
from data_pipelines.preparation import write_splits
from data_pipelines.preparation.write_shard import ShardRecord, ShardTask, write_shard

LONG_NAME = "a" * 300
RUN_TASKS = """
from data_pipelines.processes import run_tasks
list(run_tasks(abs, [1, 2], num_workers=2))
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["mnist", "imagenet", "image_folder", "cola"])
def test_source_that_is_a_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    needs = {"tokenizer": "t"} if name == "cola" else {}
    with pytest.raises(UserError, match=r"source: .*/file is no folder; it has to be .*folder"):
        prepare(name, out=tmp_path / "out", source=tmp_path / "file", **needs)  # type: ignore[arg-type]
    assert names_in(tmp_path) == ["file"]


def test_source_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source: .*aaa: cannot be read: File name too long"):
        prepare("mnist", out=tmp_path / "out", source=tmp_path / LONG_NAME)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=r"source: .*loop: cannot be used: Symlink loop"):
        prepare("mnist", out=tmp_path / "out", source=tmp_path / "loop")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"source: .*file/below does not exist"):
        prepare("mnist", out=tmp_path / "out", source=tmp_path / "file/below")


def test_input_that_cannot_be_read_is_not_taken_for_the_output(tmp_path: Path) -> None:
    archives.write_class_folders(tmp_path / "in/train", class_names=["x"], per_class=1, seed=1)
    (tmp_path / "in/train/x/gone.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"source: .*gone.jpg: cannot be read: No such file"):
        prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", val_fraction=0)


@pytest.mark.parametrize("out", ["/proc/x", f"/tmp/{LONG_NAME}"])
def test_output_that_cannot_be_made_is_not_taken_for_a_busy_one(out: str) -> None:
    with pytest.raises(UserError, match=rf"{out}: cannot be used: .*(No such file|too long)"):
        prepare("digits", out=out)


def test_start_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    archives.write_class_folders(tmp_path / "in/train", class_names=["x"], per_class=2, seed=1)
    (tmp_path / "in/train/x/0001.jpg").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(UserError, match=r"0001.jpg: damaged or not whole"):
            prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", val_fraction=0)
        assert names_in(tmp_path) == ["in"]


def test_start_that_did_something_leaves_it(tmp_path: Path) -> None:
    archives.write_mnist(tmp_path / "in", num_train=10, num_test=10)
    labels = tmp_path / "in/t10k-labels-idx1-ubyte.gz"
    labels.rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"holds none of t10k-labels"):
        prepare("mnist", out=tmp_path / "out", source=tmp_path / "in")
    assert names_in(tmp_path) == [".out.unfinished", "in", "kept"]
    (tmp_path / "kept").rename(labels)
    prepare("mnist", out=tmp_path / "out", source=tmp_path / "in")
    assert names_in(tmp_path) == ["in", "out"]


def test_plan_of_which_nothing_was_done_binds_nobody(tmp_path: Path) -> None:
    work = tmp_path / ".digits.unfinished"
    (work / "data/train").mkdir(parents=True)
    (work / "data/train/train-000099.tar").write_bytes(b"written, but killed before its record")
    (work / "plan.json").write_text('{"seed": 7}')
    made = prepare("digits", out=tmp_path / "digits")
    assert len(list(made.directory.rglob("*.tar"))) == 4
    assert names_in(tmp_path) == ["digits"]


def test_splits_are_indexed_as_two_pieces_of_work(tmp_path: Path) -> None:
    seen: list[str] = []

    def note(what: str, *, done: int, total: int | None, unit: str) -> None:
        seen.append(what)

    prepare("digits", out=tmp_path / "digits", progress=note)
    assert list(dict.fromkeys(seen)) == ["writing", "indexing train", "indexing val"]


def test_shard_that_changes_between_writing_and_indexing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_lie(task: ShardTask) -> ShardRecord:
        record = write_shard(task)
        if task.path.name == "train-000001.tar":
            changed = record.model_copy(update={"sha256": "0" * 64})
            task.record_path.write_text(changed.model_dump_json())
        return record

    monkeypatch.setattr(write_splits, "write_shard", write_and_lie)
    with pytest.raises(UserError, match=r"train-000001.tar: changed after it was written; start"):
        prepare("digits", out=tmp_path / "digits")
    assert not (tmp_path / "digits").exists()
    monkeypatch.undo()
    assert prepare("digits", out=tmp_path / "digits").num_samples["train"] == 1437


@pytest.mark.parametrize("from_stdin", [True, False])
def test_script_without_a_guard_is_told_so(tmp_path: Path, from_stdin: bool) -> None:
    script = tmp_path / "script.py"
    script.write_text(RUN_TASKS)
    ended = subprocess.run(
        [sys.executable, "-" if from_stdin else str(script)],
        input=RUN_TASKS if from_stdin else None,
        env=os.environ | {"PYTHONPATH": str(Path(data_pipelines.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    # What the workers say about it comes before, or after.
    assert "UserError: no worker process could start: each imports" in ended.stderr
    assert 'does its work below `if __name__ == "__main__":`' in ended.stderr


def test_every_data_set_with_input_can_tell_it(tmp_path: Path) -> None:
    for recipe in DATASETS.values():
        assert (recipe.describe is None) == (recipe.source is None), recipe.name
