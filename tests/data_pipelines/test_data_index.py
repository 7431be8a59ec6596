"""The index: what opening it checks, and which damage building it finds."""

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import PreparedDataset, SampleIndex, UserError, index_shards

MakeNumbered = Callable[..., SampleIndex]


def reindex(directory: Path, *, expected_samples: int | None = None) -> SampleIndex:
    shutil.rmtree(directory / "index")
    return index_shards(
        sorted(directory.glob("*.tar")),
        split="again",
        num_classes=7,
        preshuffle_seed=None,
        created_by="a test",
        expected_samples=expected_samples,
    )


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def member_offset(path: Path, number: int) -> int:
    with tarfile.open(path) as tar:
        return tar.getmembers()[number].offset


def test_index_says_what_the_shards_hold(digits: PreparedDataset) -> None:
    index = SampleIndex.open(digits.splits["train"])
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


def test_open_by_folder_and_by_pattern(digits: PreparedDataset) -> None:
    directory = digits.splits["train"]
    by_folder = SampleIndex.open(directory)
    by_pattern = SampleIndex.open(f"{directory}/train-{{000000..000002}}.tar")
    assert by_pattern.fingerprint == by_folder.fingerprint


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
    ],
)
def test_wrong_location_is_named(digits: PreparedDataset, location: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SampleIndex.open(location.format(root=digits.directory))


def test_missing_shard_is_named(make_numbered: MakeNumbered) -> None:
    index = make_numbered(25)
    index.shard_path(1).unlink()
    with pytest.raises(UserError, match=r"part-000001.tar: missing.*msam-scale data prepare"):
        SampleIndex.open(index.directory)


def test_truncated_shard_is_named_at_open(make_numbered: MakeNumbered) -> None:
    index = make_numbered(25)
    content = index.shard_path(2).read_bytes()
    index.shard_path(2).write_bytes(content[:-512])
    with pytest.raises(UserError, match=r"part-000002.tar: \d+ bytes, but \d+ when it was indexed"):
        SampleIndex.open(index.directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, r"version 99 is not known, only 'data_pipelines.index' version 1"),
        ({"format": "other"}, r"format 'other'"),
        ({"num_samples": "many"}, r"meta.json: num_samples: "),
        ({"num_samples": 24}, r"samples.npy: .*do not fit meta.json, which says 24 samples"),
        ({"columns": ["cls", "flac"]}, r"meta.json: columns \.flac cannot be decoded: images are"),
        ({"columns": ["cls"]}, r"meta.json: a sample has one image or text and one class number"),
    ],
)
def test_unusable_metadata_is_named(
    make_numbered: MakeNumbered, change: dict[str, object], message: str
) -> None:
    meta = make_numbered(25).directory / "index" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | change))
    with pytest.raises(UserError, match=message):
        SampleIndex.open(meta.parent.parent)


@pytest.mark.parametrize("name", ["meta.json", "samples.npy", "keys.txt"])
def test_missing_part_of_the_index_is_named(make_numbered: MakeNumbered, name: str) -> None:
    index = make_numbered(5)
    (index.directory / "index" / name).unlink()
    with pytest.raises(UserError, match=name):
        SampleIndex.open(index.directory)


def test_damaged_metadata_is_named(make_numbered: MakeNumbered) -> None:
    meta = make_numbered(5).directory / "index" / "meta.json"
    meta.write_text(meta.read_text()[:100])
    with pytest.raises(UserError, match=r"meta.json: cannot be read"):
        SampleIndex.open(meta.parent.parent)


def test_fingerprint_follows_the_samples(make_numbered: MakeNumbered) -> None:
    one, same = make_numbered(25, name="one"), make_numbered(25, name="same")
    other = make_numbered(24, name="other")
    assert one.fingerprint == same.fingerprint != other.fingerprint
    one.verify_fingerprint()
    samples_file = one.directory / "index" / "samples.npy"
    overwrite(samples_file, samples_file.stat().st_size - 1, b"\x01")
    with pytest.raises(UserError, match=r"samples.npy: changed since it was made"):
        SampleIndex.open(one.directory)


def test_pickled_index_holds_no_samples(digits: PreparedDataset) -> None:
    index = SampleIndex.open(digits.splits["train"])
    content = pickle.dumps(index)
    assert len(content) < 4000 < index.samples.nbytes
    assert np.array_equal(pickle.loads(content).samples, index.samples)


def test_header_zeroed_in_the_middle_is_found_at_indexing(make_numbered: MakeNumbered) -> None:
    directory = make_numbered(25).directory
    shard = directory / "part-000001.tar"
    offset = member_offset(shard, 8)
    overwrite(shard, offset, bytes(512))
    with tarfile.open(shard) as tar:
        assert len(tar.getmembers()) == 8  # what tarfile makes of it, without an error
    with pytest.raises(UserError, match=rf"part-000001.tar: damaged: no valid tar.*byte {offset}"):
        reindex(directory)


def test_wrong_header_checksum_is_found_at_indexing(make_numbered: MakeNumbered) -> None:
    directory = make_numbered(25).directory
    shard = directory / "part-000001.tar"
    overwrite(shard, member_offset(shard, 8), b"\xff")
    with pytest.raises(UserError, match=r"part-000001.tar: damaged: no valid tar header"):
        reindex(directory)


@pytest.mark.parametrize(
    ("into_member", "message"), [(0, "cut short"), (200, "damaged"), (600, "")]
)
def test_truncated_tar_is_found_at_indexing(
    make_numbered: MakeNumbered, into_member: int, message: str
) -> None:
    directory = make_numbered(25).directory
    shard = directory / "part-000001.tar"
    shard.write_bytes(shard.read_bytes()[: member_offset(shard, 8) + into_member])
    with pytest.raises(UserError, match=rf"part-000001.tar: .*{message}"):
        reindex(directory)


def test_lost_samples_are_found_by_their_number(make_numbered: MakeNumbered) -> None:
    directory = make_numbered(25).directory
    (directory / "part-000002.tar").unlink()
    with pytest.raises(UserError, match=r"25 samples were written, but the shards hold 20"):
        reindex(directory, expected_samples=25)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


IMAGE = npy(np.zeros((2, 2, 1), np.uint8))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.npy", IMAGE)], r"sample 'a': a sample has one image or text and one class number"),
        ([("a.npy", IMAGE), ("a.txt", b"")], r"sample 'a': columns \.txt cannot be decoded"),
        ([("a.npy", IMAGE), ("a.cls", b"two")], r"sample 'a': column \.cls: a class number is"),
        ([("a.npy", IMAGE), ("a.cls", b"7")], r"sample 'a' is of class 7, but the classes are 0"),
        ([("a.npy", b"x"), ("a.cls", b"1")], r"sample 'a': column \.npy: "),
        (
            [("a.npy", IMAGE[:-1]), ("a.cls", b"1")],
            r"sample 'a': column \.npy: uint8 of shape .* takes 4 bytes, but 3 follow",
        ),
        (
            [("a.npy", IMAGE + b"x"), ("a.cls", b"1")],
            r"sample 'a': column \.npy: uint8 of shape .* takes 4 bytes, but 5 follow",
        ),
        ([("a.npy", IMAGE), ("a.NPY", IMAGE)], r"sample 'a' has two files \.npy"),
        ([("a.npy", npy(np.zeros((2, 2)))), ("a.cls", b"1")], r"this is float64 of shape \(2, 2\)"),
        (
            [("a.npy", npy(np.array([{}], object))), ("a.cls", b"1")],
            r"sample 'a': column \.npy: an image is uint8 of shape .*, this is object",
        ),
        (
            [("a.npy", IMAGE), ("a.cls", b"1"), ("b.x.npy", IMAGE), ("b.cls", b"1")],
            r"sample 'b' has the columns cls, x.npy, the ones before it cls, npy",
        ),
        ([("README", b"no sample")], r"holds no samples"),
    ],
)
def test_sample_that_cannot_be_used_is_named(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    shard = tmp_path / "made.tar"
    with tarfile.open(shard, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=f"made.tar: .*{message}"):
        index_shards(
            [shard], split="made", num_classes=7, preshuffle_seed=None, created_by="a test"
        )
    assert not (tmp_path / "index").exists()


def test_index_is_not_overwritten(digits: PreparedDataset) -> None:
    with pytest.raises(UserError, match=r"val/index: there is something here already"):
        index_shards(
            sorted(digits.splits["val"].glob("*.tar")),
            split="val",
            num_classes=10,
            preshuffle_seed=0,
            created_by="a test",
        )
