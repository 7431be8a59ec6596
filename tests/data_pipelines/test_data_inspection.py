"""`data check`, `data bench` and `data index`: what they find in a split, and what they refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import archives
import numpy as np
import pytest
from shards import damage_sample, make_photos

from data_pipelines import PreparedDataset, SampleIndex, UserError
from data_pipelines.index import IndexMeta
from data_pipelines.index.format import fingerprint_of
from data_pipelines.inspection import bench_split, check_dataset
from data_pipelines.inspection.check_shard import Problem
from data_pipelines.preparation import DATASETS
from launch.cli import main
from launch.commands import data as data_command


@pytest.fixture
def copy(digits: PreparedDataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits.directory, tmp_path / "digits"))


@pytest.fixture
def photos(tmp_path: Path) -> SampleIndex:
    return make_photos(tmp_path / "photos", 25)


def problems_of(index: SampleIndex) -> list[Problem]:
    report = check_dataset(index.directory)
    assert not report.is_whole
    return [
        Problem(problem.where.replace(f"{index.directory}/", ""), problem.what)
        for problem in report.problems
    ]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_whole_data_set(digits: PreparedDataset, num_workers: int) -> None:
    report = check_dataset(digits.directory, num_workers=num_workers)
    assert report.is_whole
    assert report.num_samples == {"train": 1437, "val": 360}
    assert report.num_bytes == sum(path.stat().st_size for path in digits.directory.rglob("*.tar"))
    assert check_dataset(digits.directory / "val").num_samples == {"val": 360}


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def flip_payload(root: Path) -> None:
    damage_sample(SampleIndex.open(root / "train"), 600)


def flip_header(root: Path) -> None:
    flip(root / "train/train-000002.tar", 3)


def cut(root: Path) -> None:
    path = root / "val/val-000000.tar"
    path.write_bytes(path.read_bytes()[:100_000])


def remove(root: Path) -> None:
    (root / "train/train-000000.tar").unlink()


def flip_index(root: Path) -> None:
    flip(root / "val/index/samples.npy", 4000)


def foreign_split(root: Path) -> None:
    shutil.rmtree(root / "val")
    shutil.copytree(root / "train", root / "val")


def no_index(root: Path) -> None:
    (root / "val/index/samples.npy").unlink()


@pytest.mark.parametrize(
    ("damage", "where", "what"),
    [
        (flip_payload, "train/train-000001.tar: sample '", "damaged: the checksum differs"),
        (flip_header, "train/train-000002.tar", "though every sample is whole"),
        (cut, "val/val-000000.tar: sample '", "cut short: column ."),
        (remove, "train/train-000000.tar", "cannot be read: [Errno 2]"),
        (flip_index, "val/index", "changed since it was made"),
        (foreign_split, "val/index", "not the split that dataset.json records"),
        (no_index, "val", "samples.npy: cannot be read"),
    ],
)
def test_damage_is_found_and_named(
    copy: Path, damage: Callable[[Path], None], where: str, what: str
) -> None:
    damage(copy)
    report = check_dataset(copy)
    assert not report.is_whole
    assert any(
        problem.where.startswith(str(copy / where)) and what in problem.what
        for problem in report.problems
    ), report.problems


def test_a_problem_does_not_hide_another(copy: Path) -> None:
    for damage in (flip_payload, flip_header, cut):
        damage(copy)
    report = check_dataset(copy)
    assert {problem.where.split(": ")[0] for problem in report.problems} == {
        str(copy / name)
        for name in ("train/train-000001.tar", "train/train-000002.tar", "val/val-000000.tar")
    }
    assert len(report.problems) < 30
    assert report.num_more_problems > 200


def test_lost_names_do_not_hide_damage(photos: SampleIndex) -> None:
    damage_sample(photos, 9, column="png")
    (photos.directory / "index" / "keys.txt").write_bytes(b"")
    index, shard = problems_of(photos)
    assert index.where == "index"
    assert "keys.txt: cannot be read" in index.what
    what = "damaged: the checksum differs from the index"
    assert shard == ("part-000001.tar: sample number 9", what)


@pytest.mark.parametrize(
    "change", [{"num_classes": 9, "class_counts": None}, {"image_shape": [9, 9, 3]}]
)
def test_changed_metadata(photos: SampleIndex, change: dict[str, object]) -> None:
    path = photos.directory / "index" / "meta.json"
    meta = json.loads(path.read_text())
    if "class_counts" in change:
        change = change | {"class_counts": [*meta["class_counts"], 0, 0]}
    path.write_text(json.dumps(meta | change))
    ((where, what),) = problems_of(photos)
    assert where == "index"
    assert "changed since it was made" in what


def test_shards_that_are_empty_or_nowhere_in_the_index(photos: SampleIndex) -> None:
    shutil.copy(photos.shard_path(0), photos.directory / "part-000004.tar")
    assert problems_of(photos) == [("part-000004.tar", "not in index/: nothing reads it")]
    photos.shard_path(3).write_bytes(b"")
    found = problems_of(photos)
    size = photos.meta.shards[3].bytes
    assert ("part-000003.tar", f"0 bytes, but {size} when it was indexed") in found
    assert any("sample 'sample21'" in where and "cut short" in what for where, what in found)


def test_a_label_that_is_not_that_of_the_shard(photos: SampleIndex) -> None:
    """In an index that agrees with itself, so that only comparing labels finds it."""
    folder = photos.directory / "index"
    samples = np.load(folder / "samples.npy")
    first, other = 3, int(np.flatnonzero(samples["label"] != samples["label"][3])[0])
    right, wrong = samples["label"][[first, other]].tolist()
    samples["label"][[first, other]] = wrong, right
    np.save(folder / "samples.npy", samples)
    meta = IndexMeta.read(folder / "meta.json")
    signed = meta.model_copy(update={"fingerprint": fingerprint_of(folder, meta)})
    signed.write(folder / "meta.json")
    found = problems_of(photos)
    assert len(found) == 2
    what = f"is of class {right}, but the index says {wrong}"
    assert ("part-000000.tar: sample 'sample3'", what) in found


def test_what_lies_outside_of_the_folder_is_not_read(photos: SampleIndex, copy: Path) -> None:
    photos.shard_path(0).rename(photos.directory.parent / "outside.tar")
    path = photos.directory / "index" / "meta.json"
    path.write_text(path.read_text().replace("part-000000.tar", "../outside.tar"))
    ((where, what),) = problems_of(photos)
    assert where == "index/meta.json"
    assert "'../outside.tar' is no name of a shard" in what
    (copy / "val").rename(copy.parent / "val")
    record = copy / "dataset.json"
    record.write_text(record.read_text().replace('"val":', '"../val":'))
    with pytest.raises(UserError, match=r"dataset.json: '../val' is no name of a split"):
        check_dataset(copy)
    with pytest.raises(UserError, match=r"no prepared data to check"):
        check_dataset(copy.parent)


def test_bench_measures_every_stage(digits: PreparedDataset) -> None:
    report = bench_split(
        digits.splits["train"],
        num_samples=320,
        batch_size=32,
        num_workers=1,
        loader_seconds=0.1,
    )
    assert [stage.name for stage in report.stages] == ["read", "decode", "transform", "hand-off"]
    assert report.num_samples == 320
    assert report.samples_per_second > 0
    assert report.stages[0].seconds > 0


def test_bench_of_a_split_smaller_than_a_batch_and_what_it_refuses(
    photos: SampleIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "bench", f"{photos.directory}/*.tar", "--seconds", "0.05"]) == 0
    assert "stages measured with 25 samples" in capsys.readouterr().out
    for seconds in ("nan", "inf", "-1"):  # which never end
        assert main(["data", "bench", str(photos.directory), "--seconds", seconds]) == 2
        assert "is no time the loader can be measured for" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"samples: 0 is not positive"):
        bench_split(photos.directory, num_samples=0)
    with pytest.raises(UserError, match=r"batch size: 26 is not in 1 … 25"):
        bench_split(photos.directory, batch_size=26)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archives.write_mnist(tmp_path / "in")
    out = tmp_path / "out"
    words = ["data", "prepare", "mnist", "--out", str(out), "--source", str(tmp_path / "in")]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        f"{out}: 60 train, 20 val samples\n"
        "  train: 10 classes of 6 samples\n"
        "  val: 10 classes of 2 samples\n"
        "  note: train: 60 samples, the published set has 60000\n"
        "  note: val: 20 samples, the published set has 10000\n"
    )
    assert "writing: 80 of 80 samples" in printed.err
    assert main(words) == 0
    assert "is there already" in capsys.readouterr().out
    assert main(["data", "check", str(out)]) == 0
    assert "whole: 60 train, 20 val samples" in capsys.readouterr().out
    before = (out / "train/index/samples.npy").read_bytes()
    shutil.rmtree(out / "train/index")
    shards, elsewhere = str(out / "train/train-{000000..000000}.tar"), tmp_path / "elsewhere"
    for folder, more in ((out / "train", []), (elsewhere, ["--out", str(elsewhere)])):
        assert main(["data", "index", shards, *more]) == 0
        assert f"{folder}: 60 samples, 10 classes" in capsys.readouterr().out
        assert (folder / "index/samples.npy").read_bytes() == before
    flip(out / "train/train-000000.tar", 800)
    assert main(["data", "check", str(out)]) == 2
    printed = capsys.readouterr()
    assert "train-000000.tar" in printed.out
    assert "problem" in printed.err
    assert data_command._DATASETS.split(", ") == list(DATASETS)
