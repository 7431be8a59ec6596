"""Opening an index: nothing beside it, in it or of it may be other than when it was made."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import make_photos, make_texts

from data_pipelines import SampleIndex, UserError, build_index, open_split
from launch.cli import main

TOO_LONG = "x" * 300


@pytest.fixture
def photos(tmp_path: Path) -> SampleIndex:
    return make_photos(tmp_path / "photos", 25)


def test_a_shard_that_the_index_does_not_have_is_named(photos: SampleIndex) -> None:
    folder = photos.directory
    shutil.copy(photos.shard_path(0), folder / "part-000004.tar")
    for opening in (SampleIndex.open, open_split):
        with pytest.raises(UserError, match=r"part-000004.tar: not in the index.*make the index"):
            opening(folder)
    with pytest.raises(UserError, match=r"part-000004.tar is not in the index"):
        SampleIndex.open(f"{folder}/part-*.tar")
    # Who names the shards means these.
    assert SampleIndex.open(f"{folder}/part-{{000000..000003}}.tar").num_samples == 25
    (folder / "part-000004.tar").rename(folder / "._part-000004.tar")
    assert SampleIndex.open(folder).num_samples == 25


def test_some_of_the_shards_can_be_indexed(photos: SampleIndex) -> None:
    folder = photos.directory
    shutil.rmtree(folder / "index")
    some = f"{folder}/part-{{000001..000002}}.tar"
    assert build_index([some]).num_samples == 14
    assert SampleIndex.open(some).num_samples == 14
    with pytest.raises(UserError, match=r"part-000000.tar, part-000003.tar: not in the index"):
        SampleIndex.open(folder)


def test_a_star_means_the_same_everywhere(photos: SampleIndex) -> None:
    folder = photos.directory
    assert SampleIndex.open(f"{folder}/*.tar").fingerprint == photos.fingerprint
    with pytest.raises(UserError, match=r"other-\*.tar: no such shards"):
        SampleIndex.open(f"{folder}/other-*.tar")
    (folder / "._part-000000.tar").write_bytes(b"of macOS")
    shutil.rmtree(folder / "index")
    assert build_index([folder]).fingerprint == photos.fingerprint


@pytest.mark.parametrize("pattern", ["*.tar", ".", "../photos/*.tar"])
def test_a_split_indexed_from_inside_has_the_name_of_its_folder(
    photos: SampleIndex, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.directory)
    shutil.rmtree("index")
    assert build_index([pattern]).meta.split == "photos"


def reversed_names(index: SampleIndex) -> None:
    path = index.directory / "index" / "keys.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def no_names(index: SampleIndex) -> None:
    (index.directory / "index" / "keys.txt").write_bytes(b"")


def repeated_record(index: SampleIndex) -> None:
    path = index.directory / "index" / "samples.npy"
    samples = np.load(path)
    samples[10] = samples[11]
    np.save(path, samples)


def foreign_shard(index: SampleIndex) -> None:
    path = index.directory / "index" / "samples.npy"
    samples = np.load(path)
    samples["shard"][-1] = 1000
    np.save(path, samples)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (reversed_names, r"changed since it was made, or keys.txt or meta.json beside it"),
        (no_names, r"keys.txt: cannot be read"),
        (repeated_record, r"samples.npy: changed since it was made"),
        (foreign_shard, r"samples.npy: changed since it was made"),
    ],
)
def test_a_changed_index_is_not_opened(
    photos: SampleIndex, damage: Callable[[SampleIndex], None], message: str
) -> None:
    damage(photos)
    with pytest.raises(UserError, match=message):
        SampleIndex.open(photos.directory)


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 9},
        {"class_counts": [25]},
        {"image_shape": [8, 8, 3]},
        {"image_shape": None},
        {"tokens": {"rows": ["input_ids", "token_type_ids"], "pad_token_id": 0}},
        {"shards": 1},
    ],
)
def test_changed_metadata_is_not_opened(tmp_path: Path, change: dict[str, Any]) -> None:
    make = make_texts if "tokens" in change else make_photos
    path = make(tmp_path / "split", 25).directory / "index" / "meta.json"
    meta = json.loads(path.read_text())
    if "shards" in change:  # two of them trade a sample
        meta["shards"][0]["num_samples"] += 1
        meta["shards"][1]["num_samples"] -= 1
    else:
        assert meta[next(iter(change))] != next(iter(change.values()))
        meta |= change
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"changed since it was made, or keys.txt or meta.json"):
        SampleIndex.open(tmp_path / "split")


def test_a_shard_outside_of_the_folder_is_not_opened(photos: SampleIndex) -> None:
    path = photos.directory / "index" / "meta.json"
    photos.shard_path(0).rename(photos.directory.parent / "outside.tar")
    path.write_text(path.read_text().replace("part-000000.tar", "../outside.tar"))
    with pytest.raises(UserError, match=r"meta.json: '../outside.tar' is no name of a shard"):
        SampleIndex.open(photos.directory)


@pytest.mark.parametrize("limit", [100, 1100])
def test_a_disk_that_is_full_is_named(photos: SampleIndex, limit: int) -> None:
    """A limit of the size of files, which fails as a full disk does, in scanning or in joining."""
    folder = photos.directory
    shutil.rmtree(folder / "index")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError) as raised:
            build_index([folder])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(raised.value).startswith(f"{folder}: cannot be indexed: [Errno 27] File too large")
    assert not (folder / "index").exists()
    assert build_index([folder]).fingerprint == photos.fingerprint


@pytest.mark.parametrize("words", [["index"], ["check"], ["bench"]])
@pytest.mark.parametrize("name", [TOO_LONG, f"{TOO_LONG}/x.tar", f"{TOO_LONG}/*.tar"])
def test_names_that_are_too_long_are_refused(
    words: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *words, name]) == 2
    printed = capsys.readouterr().err
    assert "File name too long" in printed
    assert "Traceback" not in printed
