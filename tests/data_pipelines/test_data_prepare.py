"""Preparing data sets: readable, the same bytes each time, whole or not at all, from one input."""

import functools
import gzip
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import archives
import numpy as np
import pytest
from shards import array_samples, files_below
from sklearn.datasets import load_digits

import data_pipelines
from data_pipelines import (
    DATASETS,
    PreparedDataset,
    SampleIndex,
    ShardReader,
    UserError,
    prepare,
)
from data_pipelines.preparation import write_splits
from data_pipelines.preparation.record import DatasetRecord
from data_pipelines.preparation.write_shard import ShardRecord, ShardTask, write_shard

LONG_NAME = "a" * 300
RUN_TASKS = """
from data_pipelines.processes import run_tasks
list(run_tasks(abs, [1, 2], num_workers=2))
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
def test_digits_are_whole_for_us_and_for_webdataset(digits: PreparedDataset) -> None:
    assert digits.num_samples == {"train": 1437, "val": 360}
    originals, labels = load_digits(return_X_y=True)
    seen: list[int] = []
    for split, directory in digits.splits.items():
        index = SampleIndex.open(directory)
        assert min(index.meta.class_counts) > 0
        ours = Counter()
        for place, sample in ShardReader(index).read(range(index.num_samples)):
            number = int(index.key(place))
            seen.append(number)
            assert sample.label == labels[number]
            # The stored bytes give the 17 grey values back exactly.
            assert np.array_equal(np.rint(sample.image.ravel() / 255 * 16), originals[number])
            ours[sample.image.tobytes(), sample.label] += 1
        theirs = Counter((image.tobytes(), label) for image, label in array_samples(digits, split))
        assert ours == theirs
    assert sorted(seen) == list(range(1797))
    assert seen != sorted(seen)


def test_preparations_give_the_same_bytes_and_finished_ones_stay(
    digits: PreparedDataset, tmp_path: Path
) -> None:
    out = tmp_path / "100%d {a,b}: x"  # odd names are only names
    out.mkdir()  # an empty folder is used
    seen: list[tuple[str, int, int | None]] = []

    def note(what: str, *, done: int, total: int | None, unit: str) -> None:
        seen.append((what, done, total))

    first = prepare("digits", out=out, progress=note)
    assert not first.already_there
    assert files_below(out) == files_below(digits.directory)
    written = [(done, total) for what, done, total in seen if what == "writing"]
    assert written == [(done, 1797) for done in (0, 512, 1024, 1437, 1797)]
    steps = list(dict.fromkeys(what for what, _, _ in seen))
    assert steps == ["writing", "indexing train", "indexing val"]
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    second = prepare("digits", out=out)
    assert second.already_there
    assert (second.splits, second.num_samples) == (first.splits, first.num_samples)
    with pytest.raises(UserError, match=r"'digits' made with seed 0, not 'digits' with seed 1"):
        prepare("digits", out=out, seed=1)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    other = prepare("digits", out=tmp_path / "other", seed=1)
    assert files_below(other.directory) != files_below(out)


def test_changed_data_set_is_named_and_left_as_it_is(
    digits: PreparedDataset, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(digits.directory, tmp_path / "digits"))
    samples_file = out / "val" / "index" / "samples.npy"
    content = samples_file.read_bytes()
    samples_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"val/index/samples.npy: changed since it was made"):
        prepare("digits", out=out)
    shutil.rmtree(out / "val")
    shutil.copytree(out / "train", out / "val")
    with pytest.raises(UserError, match=r"val: not the split that .*dataset.json records"):
        prepare("digits", out=out)


def test_places_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds something that is no prepared data set"):
        prepare("digits", out=tmp_path)
    with pytest.raises(UserError, match=r"thesis.tex: holds something"):
        prepare("digits", out=tmp_path / "thesis.tex")
    assert files_below(tmp_path) == {"thesis.tex": b"years of work"}
    for out in ("/proc/x", "/proc/nothing/digits", f"/tmp/{LONG_NAME}"):
        with pytest.raises(UserError, match=rf"{out}: cannot be used: .*(No such file|too long)"):
            prepare("digits", out=out)


def test_options_and_sources_without_sense_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    prepare_from = functools.partial(prepare, out=tmp_path / "out")
    cases: list[tuple[str, dict[str, object], str]] = [
        ("digit", {}, r"unknown data set 'digit': did you mean 'digits'\?"),
        (
            "digits",
            {"source": tmp_path, "tokenizer": "bert"},
            r"source and tokenizer: without effect for .*'digits'",
        ),
        ("cola", {}, r"'cola' needs source and tokenizer: the folder with"),
        ("cifar10", {"source": tmp_path / "no"}, r"source: .*no does not exist; cifar-10-python"),
        ("image_folder", {"source": tmp_path, "val_fraction": 1.5}, r"val-fraction: 1.5 is not in"),
        ("digits", {"num_workers": 0}, r"workers: 0, but 1 or more are needed"),
        ("mnist", {"source": tmp_path / "file"}, r"file is no folder; it has to be .*folder"),
        ("imagenet", {"source": tmp_path / "file"}, r"file is no folder; it has to be .*folder"),
        (
            "cola",
            {"source": tmp_path / "file", "tokenizer": "t"},
            r"file is no folder; it has to be .*folder",
        ),
        ("mnist", {"source": tmp_path / LONG_NAME}, r"aaa: cannot be read: File name too long"),
        ("mnist", {"source": tmp_path / "loop"}, r"loop: cannot be used: Symlink loop"),
        ("mnist", {"source": tmp_path / "file/below"}, r"source: .*file/below does not exist"),
    ]
    for name, options, message in cases:
        with pytest.raises(UserError, match=message):
            prepare_from(name, **options)  # type: ignore[arg-type]
    assert names_in(tmp_path) == ["file", "loop"]
    for recipe in DATASETS.values():
        assert (recipe.describe is None) == (recipe.source is None), recipe.name


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
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    # What the workers say about it comes before, or after.
    assert "UserError: no worker process could start: each imports" in ended.stderr
    assert 'does its work below `if __name__ == "__main__":`' in ended.stderr


# A finished data set is only taken for what is asked if it was made from the same input. --------

Write = Callable[[Path], None]


def write_folders(folder: Path) -> None:
    archives.write_class_folders(folder, class_names=["x", "y"], per_class=2, seed=1)


def write_renamed_folders(folder: Path) -> None:
    write_folders(folder)
    (folder / "x/0001.jpg").rename(folder / "x/0004.jpg")


def write_split_folders(folder: Path) -> None:
    for split in ("train", "val"):
        write_folders(folder / split)


def write_other_split_folders(folder: Path) -> None:
    write_split_folders(folder)
    (folder / "val/x/0001.jpg").write_bytes(archives.jpeg_bytes(99))


def write_mnist(folder: Path) -> None:
    archives.write_mnist(folder, num_train=10, num_test=10)


def write_other_mnist(folder: Path) -> None:
    write_mnist(folder)
    labels = archives.idx_bytes(archives.mnist_arrays(10, 0)[1][::-1])
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def write_cifar(folder: Path, per_batch: int = 10) -> None:
    folder.mkdir()
    files = archives.cifar10_files(per_batch=per_batch)
    archives.write_cifar(folder / "cifar-10-python.tar.gz", files)


def write_fewer_imagenet(folder: Path) -> None:
    train, kit = archives.imagenet_train_files(per_class=6), archives.imagenet_kit(per_class=6)
    archives.write_imagenet(folder, train=train, kit=kit)


def write_cola(folder: Path, dev: str = "the cat") -> None:
    archives.write_lines(folder / "train.tsv", ["gj\t0\t*\tthe cat", "gj\t1\t\ta dog"])
    archives.write_lines(folder / "dev.tsv", [f"gj\t0\t*\t{dev}", "gj\t1\t\ta dog"])


@pytest.mark.parametrize(
    ("name", "write", "write_other", "differs", "needs"),
    [
        ("image_folder", write_folders, write_renamed_folders, "all images", {"val_fraction": 0}),
        ("imagenet", write_split_folders, write_other_split_folders, "val", {}),
        ("imagenet", archives.write_imagenet, write_fewer_imagenet, "ILSVRC2012_devkit_t12.t", {}),
        ("mnist", write_mnist, write_other_mnist, "train-labels-idx1-ubyte.gz", {}),
        (
            "cifar10",
            write_cifar,
            functools.partial(write_cifar, per_batch=11),
            "cifar-10-python.tar.gz",
            {},
        ),
        ("cola", write_cola, functools.partial(write_cola, dev="a mat"), "dev.tsv", {"tokenizer"}),
    ],
)
def test_other_input_is_not_taken_for_the_one_that_is_there(
    tmp_path: Path,
    tokenizer: str,
    name: str,
    write: Write,
    write_other: Write,
    differs: str,
    needs: dict[str, object],
) -> None:
    write(tmp_path / "one")
    write_other(tmp_path / "other")
    options = {"tokenizer": tokenizer} if "tokenizer" in needs else needs
    prepare_from = functools.partial(prepare, name, out=tmp_path / "out", **options)  # type: ignore[arg-type]
    prepare_from(source=tmp_path / "one")
    with pytest.raises(
        UserError, match=rf"made from another input: .*/other differs in {differs}.*never overw"
    ):
        prepare_from(source=tmp_path / "other")
    # The same input at another place is the same.
    (tmp_path / "one").rename(tmp_path / "moved")
    assert prepare_from(source=tmp_path / "moved").already_there


def test_other_tokenizer_of_the_same_name_is_not_taken_for_it(tmp_path: Path) -> None:
    archives.write_tokenizer(tmp_path / "one/bert")
    archives.write_tokenizer(tmp_path / "other/bert", model_max_length=30)
    archives.write_lines(tmp_path / "some.tsv", ["text\tlabel", "the cat\t0", "a dog\t1"])
    prepare_with = functools.partial(
        prepare,
        "table",
        out=tmp_path / "out",
        source=tmp_path / "some.tsv",
        text_columns=("text",),
        label_column="label",
        val_fraction=0,
        max_length=20,
    )
    made = prepare_with(tokenizer=str(tmp_path / "one/bert/"))
    assert DatasetRecord.read(made.directory).options["tokenizer"] == "bert"
    with pytest.raises(UserError, match=r"made with another tokenizer than .*other/bert is now"):
        prepare_with(tokenizer=str(tmp_path / "other/bert"))
    # The whole name on the hub says which one it is.
    with pytest.raises(UserError, match=r"made with tokenizer 'bert' instead of 'somebody/bert'"):
        prepare_with(tokenizer="somebody/bert")
