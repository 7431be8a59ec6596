"""Opening an index: nothing beside it, in it or of it may be other than when it was made."""

import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import make_photos, make_texts, overwrite

from data_pipelines import PreparedDataset, SampleIndex, UserError, build_index, open_split
from launch.cli import main

MakeNumbered = Callable[..., SampleIndex]


@pytest.fixture
def photos(tmp_path: Path) -> SampleIndex:
    return make_photos(tmp_path / "photos", 25)


def test_index_says_what_the_shards_hold(digits: PreparedDataset) -> None:
    directory = digits.splits["train"]
    index = SampleIndex.open(directory)
    assert index.num_samples == 1437
    assert [shard.num_samples for shard in index.meta.shards] == [512, 512, 413]
    assert index.image_shape == (8, 8, 1)
    assert index.num_classes == 10
    assert index.meta.class_counts == tuple(np.bincount(index.samples["label"]).tolist())
    assert index.meta.preshuffle_seed == 0
    for sample_id in (0, 511, 512, 1436):
        record = index.samples[sample_id]
        with tarfile.open(index.shard_path(record["shard"])) as tar:
            member = tar.getmember(f"{index.key(sample_id)}.npy")
            assert (member.offset_data, member.size) == (record["npy.offset"], record["npy.size"])
    by_pattern = SampleIndex.open(f"{directory}/train-{{000000..000002}}.tar")
    assert by_pattern.fingerprint == index.fingerprint
    content = pickle.dumps(index)
    assert len(content) < 4000 < index.samples.nbytes
    assert np.array_equal(pickle.loads(content).samples, index.samples)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("{root}/nowhere", r"nowhere: no such folder.*msam-scale data prepare"),
        ("{root}/nowhere/a-{{0..3}}.tar", r"nowhere: no such folder.*msam-scale data prepare"),
        ("{root}", r"give one of its splits: train, val"),
        ("{root}/train/index", r"index: has no index/meta.json"),
        ("{root}/train/train-{{000000..000001}}.tar", r"train-000002.tar is in the index but not"),
        ("{root}/train/train-{{000000..000003}}.tar", r"train-000003.tar is not in the index"),
        ("{root}/{{train/train,val/val}}-000000.tar", r"lie in one folder"),
        ("{root}/train/train-{{000000..000002.tar", r"braces do not match"),
        ("{root}/train/other-*.tar", r"other-\*.tar: no such shards"),
    ],
)
def test_wrong_location_is_named(digits: PreparedDataset, location: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SampleIndex.open(location.format(root=digits.directory))


def test_a_shard_that_the_index_does_not_have_is_named(photos: SampleIndex) -> None:
    folder = photos.directory
    assert SampleIndex.open(f"{folder}/*.tar").fingerprint == photos.fingerprint
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


@pytest.mark.parametrize("pattern", ["*.tar", ".", "../photos/*.tar"])
def test_a_split_indexed_from_inside_has_the_name_of_its_folder(
    photos: SampleIndex, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.directory)
    shutil.rmtree("index")
    Path("._part-000000.tar").write_bytes(b"of macOS")
    index = build_index([pattern])
    assert (index.meta.split, index.fingerprint) == ("photos", photos.fingerprint)


def test_shards_that_are_missing_or_of_another_size_are_named(photos: SampleIndex) -> None:
    shard = photos.shard_path(2)
    content = shard.read_bytes()
    for changed in (content[:-512], content + bytes(512)):
        shard.write_bytes(changed)
        sizes = rf"part-000002.tar: {len(changed)} bytes, but {len(content)} when it was indexed"
        with pytest.raises(UserError, match=sizes):
            SampleIndex.open(photos.directory)
    shard.unlink()
    with pytest.raises(UserError, match=r"part-000002.tar: missing.*msam-scale data prepare"):
        SampleIndex.open(photos.directory)


def test_damaged_and_missing_parts_of_the_index_are_named(photos: SampleIndex) -> None:
    folder = photos.directory / "index"
    for name in ("meta.json", "samples.npy", "keys.txt"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(UserError, match=name):
            SampleIndex.open(photos.directory)
        (folder / name).write_bytes(content)
    (folder / "meta.json").write_bytes((folder / "meta.json").read_bytes()[:100])
    with pytest.raises(UserError, match=r"meta.json: cannot be read"):
        SampleIndex.open(photos.directory)


def reversed_names(index: SampleIndex) -> None:
    path = index.directory / "index" / "keys.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def no_names(index: SampleIndex) -> None:
    (index.directory / "index" / "keys.txt").write_bytes(b"")


def a_name_too_few(index: SampleIndex) -> None:
    path = index.directory / "index" / "keys.txt"
    path.write_bytes(path.read_bytes()[:-1])


def repeated_record(index: SampleIndex) -> None:
    path = index.directory / "index" / "samples.npy"
    samples = np.load(path)
    samples[10] = samples[11]
    np.save(path, samples)


def last_byte(index: SampleIndex) -> None:
    path = index.directory / "index" / "samples.npy"
    overwrite(path, path.stat().st_size - 1, b"\x01")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (reversed_names, r"changed since it was made, or keys.txt or meta.json beside it"),
        (no_names, r"keys.txt: cannot be read"),
        (a_name_too_few, r"keys.txt: 24 names for 25 samples"),
        (repeated_record, r"samples.npy: changed since it was made"),
        (last_byte, r"samples.npy: changed since it was made"),
    ],
)
def test_a_changed_index_is_not_opened(
    photos: SampleIndex, damage: Callable[[SampleIndex], None], message: str
) -> None:
    damage(photos)
    with pytest.raises(UserError, match=message):
        SampleIndex.open(photos.directory)
    if damage is a_name_too_few:
        with pytest.raises(UserError, match=message):
            SampleIndex(photos.directory, photos.meta).key(3)


def traded_samples(meta: dict[str, Any]) -> None:
    meta["shards"][0]["num_samples"] += 1
    meta["shards"][1]["num_samples"] -= 1


def another_checksum(meta: dict[str, Any]) -> None:
    meta["shards"][1]["sha256"] = meta["shards"][0]["sha256"]


def setting(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda meta: meta.update(values)


CHANGED = r"changed since it was made, or keys.txt or meta.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting(num_classes=9), CHANGED),
        (setting(class_counts=[25]), CHANGED),
        (setting(image_shape=[8, 8, 3]), CHANGED),
        (setting(image_shape=None), CHANGED),
        (traded_samples, CHANGED),
        (another_checksum, CHANGED),
        (setting(version=99), r"version 99 is not known, only 'data_pipelines.index' version 1"),
        (setting(format="other"), r"format 'other'"),
        (setting(num_samples="many"), r"meta.json: num_samples: "),
        (setting(num_samples=24), r"samples.npy: .*do not fit meta.json, which says 24 samples"),
        (setting(columns=["cls", "flac"]), r"meta.json: columns \.flac cannot be decoded: images"),
        (setting(columns=["cls"]), r"meta.json: a sample has one image or text and one class"),
    ],
)
def test_changed_metadata_is_not_opened(
    photos: SampleIndex, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = photos.directory / "index" / "meta.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=message):
        SampleIndex.open(photos.directory)


def test_changed_tokens_are_not_opened(tmp_path: Path) -> None:
    index = make_texts(tmp_path / "split", 25)
    assert index.lengths is not None
    assert np.array_equal(pickle.loads(pickle.dumps(index)).lengths, index.lengths)
    path = index.directory / "index" / "meta.json"
    path.write_text(path.read_text().replace('"pad_token_id": 9', '"pad_token_id": 0'))
    with pytest.raises(UserError, match=CHANGED):
        SampleIndex.open(index.directory)


def test_a_shard_outside_of_the_folder_is_not_opened(photos: SampleIndex) -> None:
    path = photos.directory / "index" / "meta.json"
    photos.shard_path(0).rename(photos.directory.parent / "outside.tar")
    path.write_text(path.read_text().replace("part-000000.tar", "../outside.tar"))
    with pytest.raises(UserError, match=r"meta.json: '../outside.tar' is no name of a shard"):
        SampleIndex.open(photos.directory)


def test_fingerprint_follows_the_samples(make_numbered: MakeNumbered) -> None:
    one, same = make_numbered(25, name="one"), make_numbered(25, name="same")
    assert one.fingerprint == same.fingerprint != make_numbered(24, name="other").fingerprint
    one.verify_fingerprint()


def test_braces_in_braces_still_name_shards(digits: PreparedDataset) -> None:
    for braces in ("{000000,00000{1..2}}", "00000{0,{1,2}}", "0{0..0}{0..0}{0..0}{0..0}{0..2}"):
        index = SampleIndex.open(f"{digits.directory}/train/train-{braces}.tar")
        assert index.num_samples == SampleIndex.open(digits.directory / "train").num_samples


@pytest.mark.parametrize("words", [["index"], ["check"], ["bench"]])
def test_names_that_are_too_long_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for ending in ("", "/x.tar", "/*.tar"):
        assert main(["data", *words, f"{'x' * 300}{ending}"]) == 2
        printed = capsys.readouterr().err
        assert "File name too long" in printed
        assert "Traceback" not in printed
