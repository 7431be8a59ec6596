"""`data check` and `data bench`: what they find in a split, and what they refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from shards import make_photos

from data_pipelines import PreparedDataset, SampleIndex, UserError
from data_pipelines.index import IndexMeta
from data_pipelines.index.format import fingerprint_of
from data_pipelines.inspection import bench_split, check_dataset
from data_pipelines.inspection.check_shard import Problem
from launch.cli import main


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


def damage(index: SampleIndex, sample_id: int) -> None:
    record = index.samples[sample_id]
    path = index.shard_path(int(record["shard"]))
    content = bytearray(path.read_bytes())
    content[int(record["png.offset"]) + 60] ^= 1
    path.write_bytes(content)


def signed(index: SampleIndex) -> None:
    """Makes the fingerprint fit again."""
    folder = index.directory / "index"
    meta = IndexMeta.read(folder / "meta.json")
    meta.model_copy(update={"fingerprint": fingerprint_of(folder, meta)}).write(
        folder / "meta.json"
    )


def test_a_shard_that_the_index_does_not_have(photos: SampleIndex) -> None:
    shutil.copy(photos.shard_path(0), photos.directory / "part-000004.tar")
    assert problems_of(photos) == [("part-000004.tar", "not in index/: nothing reads it")]


def test_swapped_names(photos: SampleIndex) -> None:
    path = photos.directory / "index" / "keys.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    ((where, what),) = problems_of(photos)
    assert where == "index"
    assert "changed since it was made" in what


def test_lost_names_do_not_hide_damage(photos: SampleIndex) -> None:
    damage(photos, 9)
    (photos.directory / "index" / "keys.txt").write_bytes(b"")
    index, shard = problems_of(photos)
    assert index.where == "index"
    assert "keys.txt: cannot be read" in index.what
    assert shard == (
        "part-000001.tar: sample number 9",
        "damaged: the checksum differs from the index",
    )


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


def test_an_empty_shard(photos: SampleIndex) -> None:
    photos.shard_path(3).write_bytes(b"")
    found = problems_of(photos)
    size = photos.meta.shards[3].bytes
    assert ("part-000003.tar", f"0 bytes, but {size} when it was indexed") in found
    assert any("sample 'sample21'" in where and "cut short" in what for where, what in found)


def test_a_label_that_is_not_that_of_the_shard(photos: SampleIndex) -> None:
    """In an index that agrees with itself, so that only comparing labels finds it."""
    path = photos.directory / "index" / "samples.npy"
    samples = np.load(path)
    first, other = 3, int(np.flatnonzero(samples["label"] != samples["label"][3])[0])
    right, wrong = samples["label"][[first, other]].tolist()
    samples["label"][[first, other]] = wrong, right
    np.save(path, samples)
    signed(photos)
    found = problems_of(photos)
    assert len(found) == 2
    assert (
        "part-000000.tar: sample 'sample3'",
        f"is of class {right}, but the index says {wrong}",
    ) in found


def test_a_shard_outside_of_the_folder_is_not_read(photos: SampleIndex) -> None:
    photos.shard_path(0).rename(photos.directory.parent / "outside.tar")
    path = photos.directory / "index" / "meta.json"
    path.write_text(path.read_text().replace("part-000000.tar", "../outside.tar"))
    ((where, what),) = problems_of(photos)
    assert where == "index/meta.json"
    assert "'../outside.tar' is no name of a shard" in what


def test_a_split_outside_of_the_folder_is_not_read(digits: PreparedDataset, tmp_path: Path) -> None:
    copy = shutil.copytree(digits.directory, tmp_path / "in" / "digits")
    (copy / "val").rename(tmp_path / "in" / "val")
    record = copy / "dataset.json"
    record.write_text(record.read_text().replace('"val":', '"../val":'))
    with pytest.raises(UserError, match=r"dataset.json: '../val' is no name of a split"):
        check_dataset(copy)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_times_that_never_end_are_refused(
    photos: SampleIndex, seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "bench", str(photos.directory), "--seconds", seconds]) == 2
    assert "is no time the loader can be measured for" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"samples: 0 is not positive"):
        bench_split(photos.directory, num_samples=0)


def test_a_split_smaller_than_a_batch_is_measured(
    photos: SampleIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "bench", f"{photos.directory}/*.tar", "--seconds", "0.05"]) == 0
    assert "stages measured with 25 samples" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"batch size: 26 is not in 1 … 25"):
        bench_split(photos.directory, batch_size=26)
