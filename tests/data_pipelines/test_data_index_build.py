"""Indexing shards that are there: in parallel, again after a kill, and what is refused."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import make_texts, npy, png, write_shards

from data_pipelines import SampleIndex, ShardReader, UserError
from data_pipelines.index import IndexMeta, ShardMeta, build_index
from data_pipelines.index.format import FORMAT_NAME, FORMAT_VERSION, fingerprint_of, sample_dtype

IMAGE = png(np.zeros((4, 6, 3), np.uint8))


class Steps:
    """A progress callback that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int | None, str]] = []

    def __call__(self, what: str, *, done: int, total: int | None, unit: str) -> None:
        self.seen.append((what, done, total, unit))


def made(directory: Path, num_samples: int = 35, **columns: bytes) -> list[Path]:
    samples = [
        {"png": IMAGE, "cls": str(number % 5).encode(), **columns} for number in range(num_samples)
    ]
    return write_shards(directory, samples)


def files_of(index: SampleIndex) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (index.directory / "index").iterdir()}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_index_of_existing_shards(tmp_path: Path, num_processes: int) -> None:
    made(tmp_path / "train")
    progress = Steps()
    index = build_index([tmp_path / "train"], num_processes=num_processes, progress=progress)
    assert index.num_samples == 35
    assert index.num_classes == 5
    assert index.meta.class_counts == (7, 7, 7, 7, 7)
    assert index.image_shape == (4, 6, 3)
    assert index.meta.split == "train"
    assert index.meta.preshuffle_seed is None
    assert [index.key(number) for number in (0, 9, 10, 34)] == [
        "sample0",
        "sample9",
        "sample10",
        "sample34",
    ]
    assert [sample.label for _, sample in ShardReader(index).read(range(35))] == [
        number % 5 for number in range(35)
    ]
    assert progress.seen == [("indexing", done, 4, "shards") for done in range(5)]
    assert sorted(path.name for path in index.directory.iterdir() if path.name[0] == ".") == []


def test_number_of_processes_changes_no_byte(tmp_path: Path) -> None:
    one = build_index(made(tmp_path / "one"))
    two = build_index(made(tmp_path / "two"), num_processes=2)
    first, second = files_of(one), files_of(two)
    first["meta.json"] = first["meta.json"].replace(b'"one"', b'"two"')
    assert first == second


def test_patterns(tmp_path: Path) -> None:
    for name in ("braces", "star", "both"):
        made(tmp_path / name)
    patterns = {
        "braces": ["{0}/part-{{000000..000003}}.tar"],
        "star": ["{0}/part-*.tar"],
        "both": ["{0}/part-00000[3].tar".replace("[3]", "3"), "{0}/part-{{000000..000002}}.tar"],
    }
    shards = {
        name: [
            shard.name
            for shard in build_index([each.format(tmp_path / name) for each in given]).meta.shards
        ]
        for name, given in patterns.items()
    }
    in_order = [f"part-{number:06d}.tar" for number in range(4)]
    assert shards == {
        "braces": in_order,
        "star": in_order,
        "both": [in_order[3], *in_order[:3]],
    }


def test_other_columns_are_left_out_when_they_are_named(tmp_path: Path) -> None:
    shards = made(tmp_path / "train", json=b"{}", txt=b"words")
    with pytest.raises(UserError, match=r"columns \.json, \.txt cannot be decoded"):
        build_index(shards)
    index = build_index(shards, ignored_columns=["json", ".TXT"])
    assert index.meta.columns == ("cls", "png")
    assert index.meta.ignored_columns == ("json", "txt")
    assert SampleIndex.open(index.directory).meta == index.meta
    assert len(list(ShardReader(index).read(range(35)))) == 35


def test_a_sample_of_left_out_files_alone_is_refused(tmp_path: Path) -> None:
    samples = [{"png": IMAGE, "cls": b"1"}, {"json": b"{}"}]
    with pytest.raises(UserError, match=r"sample 'sample1': a sample has one image or text"):
        build_index(write_shards(tmp_path / "train", samples), ignored_columns=["json"])


@pytest.mark.parametrize(
    ("compress", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_compressed_tars_are_refused_with_words(
    tmp_path: Path, compress: Callable[[bytes], bytes], name: str
) -> None:
    (shard,) = made(tmp_path / "train", 3)
    shard.write_bytes(compress(shard.read_bytes()))
    with pytest.raises(UserError, match=rf"part-000000.tar: compressed \({name}\): .* unpack it"):
        build_index([shard])


def tar_of(directory: Path, members: list[tarfile.TarInfo]) -> Path:
    directory.mkdir()
    shard = directory / "made.tar"
    with tarfile.open(shard, "w") as tar:
        for name, content in (("a.png", IMAGE), ("a.cls", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in members:
            tar.addfile(member)
    return shard


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("b.png")
    link.type, link.linkname = kind, "a.png"
    with pytest.raises(UserError, match=r"made.tar: b.png: a link to 'a.png'"):
        build_index([tar_of(tmp_path / "train", [link])])


def test_folders_are_no_samples(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("folder.d")
    folder.type = tarfile.DIRTYPE
    assert build_index([tar_of(tmp_path / "train", [folder])]).num_samples == 1


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], r"no shards given"),
        (["{root}/none.tar"], r"none.tar: no such shards"),
        (["{root}/none-*.tar"], r"none-\*.tar: no such shards"),
        (["{root}/empty"], r"empty: no such shards"),
        (["{root}/train/part-{{000000..000004}}.tar"], r"part-000004.tar: no such shards"),
        (["{root}/train", "{root}/train/part-000000.tar"], r"named more than once: part-000000"),
        (["{root}/train", "{root}/other"], r"lie in one folder, not: .*other, .*train"),
        (["{root}/train/part-{{0..1.tar"], r"braces do not match"),
    ],
)
def test_wrong_patterns_are_named(tmp_path: Path, patterns: list[str], message: str) -> None:
    made(tmp_path / "train")
    made(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        build_index([pattern.format(root=tmp_path) for pattern in patterns])


def test_class_numbers_must_be_in_range(tmp_path: Path) -> None:
    shards = made(tmp_path / "train")
    with pytest.raises(UserError, match=r"is of class 4, but the classes are 0 … 3"):
        build_index(shards, num_classes=4)
    assert build_index(shards, num_classes=9).num_classes == 9
    huge = [{"png": IMAGE, "cls": b"99999999999"}]
    with pytest.raises(UserError, match=r"99999999999"):
        build_index(write_shards(tmp_path / "huge", huge))


def test_shards_of_different_kinds_are_refused(tmp_path: Path) -> None:
    first = {"png": IMAGE, "cls": b"1"}
    second = {"npy": npy(np.zeros((4, 6, 3), np.uint8)), "cls": b"1"}
    shards = write_shards(tmp_path / "train", [first] * 10 + [second] * 3)
    with pytest.raises(UserError, match=r"000001.tar: sample 'sample10' has the columns cls, npy"):
        build_index(shards)


def test_finished_index_is_kept(tmp_path: Path) -> None:
    shards = made(tmp_path / "train")
    build_index(shards)
    with pytest.raises(UserError, match=r"index: there is something here already"):
        build_index(shards)


def test_another_process_is_waited_for(tmp_path: Path) -> None:
    import filelock

    shards = made(tmp_path / "train")
    with (
        filelock.FileLock(tmp_path / "train" / ".index.lock"),
        pytest.raises(UserError, match=r"train: is being indexed by another process"),
    ):
        build_index(shards)


def test_what_was_scanned_is_not_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipelines.index import shard_table

    shards = made(tmp_path / "train")
    scanned: list[str] = []
    scan = shard_table.scan_shard

    def watched(path: Path, **settings: Any) -> Any:
        scanned.append(path.name)
        return scan(path, **settings)

    monkeypatch.setattr(shard_table, "scan_shard", watched)
    whole = shards[2].read_bytes()
    shards[2].write_bytes(whole[:-10240])
    with pytest.raises(UserError, match=r"part-000002.tar: cut short"):
        build_index(shards)
    assert scanned == [path.name for path in shards[:3]]
    scanned.clear()
    shards[2].write_bytes(whole)
    # One that was changed since is scanned again.
    os.utime(shards[0], ns=(1, 1))
    build_index(shards)
    assert scanned == ["part-000000.tar", "part-000002.tar", "part-000003.tar"]


def build_and_stop(directory: str) -> None:
    """Indexes two shards and waits to be killed."""

    def progress(what: str, *, done: int, total: int | None, unit: str) -> None:
        if done == 2:
            print("there", flush=True)
            sys.stdin.read()

    build_index([directory], num_processes=1, progress=progress)


def test_a_killed_start_is_continued(tmp_path: Path) -> None:
    here = Path(__file__).parent
    made(tmp_path / "train")
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, test_data_index_build as test; test.build_and_stop(sys.argv[1])",
            str(tmp_path / "train"),
        ],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parents[1]}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "train" / "index").exists()
    kept = sorted((tmp_path / "train" / ".index.unfinished").glob("*.json"))
    assert [path.name for path in kept] == ["000000.json", "000001.json"]
    index = build_index([tmp_path / "train"])
    made(tmp_path / "again")
    assert index.fingerprint == build_index([tmp_path / "again"]).fingerprint
    assert not (tmp_path / "train" / ".index.unfinished").exists()


def test_text_is_indexed_with_lengths(tmp_path: Path) -> None:
    index = make_texts(tmp_path / "texts", 25)
    lengths = index.lengths
    assert lengths is not None
    assert np.array_equal(pickle.loads(pickle.dumps(index)).lengths, lengths)


def synthetic_index(directory: Path, *, num_shards: int, per_shard: int) -> None:
    """An index of shards that only have their size."""
    num_samples = num_shards * per_shard
    (directory / "index").mkdir(parents=True)
    samples = np.zeros(num_samples, sample_dtype(("cls", "jpg"), has_tokens=False))
    samples["shard"] = np.arange(num_samples) // per_shard
    samples["label"] = np.arange(num_samples) % 1000
    np.save(directory / "index" / "samples.npy", samples)
    keys = "\n".join(f"n{number:08d}" for number in range(num_samples)) + "\n"
    (directory / "index" / "keys.txt").write_text(keys)
    shards = tuple(
        ShardMeta(
            name=f"train-{number:06d}.tar", bytes=10_240, num_samples=per_shard, sha256="0" * 64
        )
        for number in range(num_shards)
    )
    for shard in shards:
        with (directory / shard.name).open("wb") as file:
            file.truncate(shard.bytes)
    meta = IndexMeta(
        format=FORMAT_NAME,
        version=FORMAT_VERSION,
        split="train",
        num_samples=num_samples,
        num_classes=1000,
        class_counts=tuple(np.bincount(samples["label"]).tolist()),
        columns=("cls", "jpg"),
        image_shape=None,
        preshuffle_seed=0,
        shards=shards,
        created_by="a test",
        fingerprint="",
    )
    fingerprint = fingerprint_of(directory / "index", meta)
    meta.model_copy(update={"fingerprint": fingerprint}).write(directory / "index" / "meta.json")


def test_opening_a_large_index_takes_no_time(tmp_path: Path) -> None:
    """1.28 million samples in 1280 shards: a run that resumes must not wait for it."""
    synthetic_index(tmp_path / "large", num_shards=1280, per_shard=1000)

    def seconds() -> float:
        begin = time.process_time()
        SampleIndex.open(tmp_path / "large")
        return time.process_time() - begin

    assert min(seconds() for _ in range(5)) < 0.5
    index = SampleIndex.open(tmp_path / "large")
    assert len(pickle.dumps(index)) < 200_000
    assert [index.key(number) for number in (0, 999_999, 1_279_999)] == [
        "n00000000",
        "n00999999",
        "n01279999",
    ]


def test_damaged_names_are_found(tmp_path: Path) -> None:
    index = build_index(made(tmp_path / "train"))
    names = index.directory / "index" / "keys.txt"
    names.write_bytes(names.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"keys.txt: 34 names for 35 samples"):
        SampleIndex.open(index.directory)
    with pytest.raises(UserError, match=r"keys.txt: 34 names for 35 samples"):
        SampleIndex(index.directory, index.meta).key(3)


def test_image_metadata_has_nothing_of_text(tmp_path: Path) -> None:
    index = build_index(made(tmp_path / "train"))
    meta = json.loads((index.directory / "index" / "meta.json").read_text())
    assert meta["version"] == 1
    assert not {"tokens", "ignored_columns"} & set(meta)
    assert index.samples.dtype.names == (
        "shard",
        "cls.offset",
        "cls.size",
        "png.offset",
        "png.size",
        "crc32",
        "label",
    )
