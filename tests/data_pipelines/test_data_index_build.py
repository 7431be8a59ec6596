"""Indexing shards that are there: in parallel, again after a kill, and what is refused."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from shards import files_below, indexed, make_photos, npy, overwrite, png, write_shards

from data_pipelines import SampleIndex, ShardReader, UserError
from data_pipelines.index import IndexMeta, ShardMeta, build_index, shard_table
from data_pipelines.index.format import FORMAT_NAME, FORMAT_VERSION, fingerprint_of, sample_dtype

IMAGE = png(np.zeros((4, 6, 3), np.uint8))
ARRAY = npy(np.zeros((2, 2, 1), np.uint8))
MakeNumbered = Callable[..., SampleIndex]


def made(directory: Path, num_samples: int = 35, **columns: bytes) -> list[Path]:
    samples = [
        {"png": IMAGE, "cls": str(number % 5).encode(), **columns} for number in range(num_samples)
    ]
    return write_shards(directory, samples)


def test_index_of_existing_shards(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None, str]] = []

    def progress(what: str, *, done: int, total: int | None, unit: str) -> None:
        seen.append((what, done, total, unit))

    made(tmp_path / "train")
    index = build_index([tmp_path / "train"], progress=progress)
    assert (index.num_samples, index.num_classes, index.image_shape) == (35, 5, (4, 6, 3))
    assert index.meta.class_counts == (7, 7, 7, 7, 7)
    assert index.meta.split == "train"
    assert index.meta.preshuffle_seed is None
    assert [index.key(number) for number in (0, 9, 10, 34)] == [
        f"sample{number}" for number in (0, 9, 10, 34)
    ]
    labels = [sample.label for _, sample in ShardReader(index).read(range(35))]
    assert labels == [number % 5 for number in range(35)]
    assert seen == [("indexing", done, 4, "shards") for done in range(5)]
    assert [path.name for path in index.directory.iterdir() if path.name[0] == "."] == []
    # Metadata of images has nothing of text.
    meta = json.loads((index.directory / "index" / "meta.json").read_text())
    assert meta["version"] == 1
    assert not {"tokens", "ignored_columns"} & set(meta)
    extents = ("cls.offset", "cls.size", "png.offset", "png.size")
    assert index.samples.dtype.names == ("shard", *extents, "crc32", "label")
    with pytest.raises(UserError, match=r"index: there is something here already"):
        build_index([tmp_path / "train"])


def test_number_of_processes_changes_no_byte(tmp_path: Path) -> None:
    """Also where the first shard takes longest, and so is ready last."""
    large = [{"png": IMAGE, "cls": b"1"}] * 600
    for name in ("one", "two"):
        shards = write_shards(tmp_path / name, large, per_shard=600)
        for number, more in enumerate(made(tmp_path / f"more-{name}"), start=1):
            shards.append(more.rename(shards[0].with_name(f"part-{number:06d}.tar")))
        build_index(shards, num_processes=1 if name == "one" else 2)
    one, two = (files_below(tmp_path / name / "index") for name in ("one", "two"))
    one["meta.json"] = one["meta.json"].replace(b'"one"', b'"two"')
    assert one == two


def test_patterns(tmp_path: Path) -> None:
    in_order = [f"part-{number:06d}.tar" for number in range(4)]
    for name, patterns, expected in (
        ("braces", ["part-{000000..000003}.tar"], in_order),
        ("star", ["part-*.tar"], in_order),
        ("both", [in_order[3], "part-{000000..000002}.tar"], [in_order[3], *in_order[:3]]),
    ):
        made(tmp_path / name)
        index = build_index([f"{tmp_path / name}/{pattern}" for pattern in patterns])
        assert [shard.name for shard in index.meta.shards] == expected


def test_other_columns_are_left_out_when_they_are_named(tmp_path: Path) -> None:
    shards = made(tmp_path / "train", json=b"{}", txt=b"words")
    with pytest.raises(UserError, match=r"columns \.json, \.txt cannot be decoded"):
        build_index(shards)
    index = build_index(shards, ignored_columns=["json", ".TXT"])
    assert index.meta.columns == ("cls", "png")
    assert index.meta.ignored_columns == ("json", "txt")
    assert SampleIndex.open(index.directory).meta == index.meta
    assert len(list(ShardReader(index).read(range(35)))) == 35
    samples = [{"png": IMAGE, "cls": b"1"}, {"json": b"{}"}]
    with pytest.raises(UserError, match=r"sample 'sample1': a sample has one image or text"):
        build_index(write_shards(tmp_path / "alone", samples), ignored_columns=["json"])


def test_compressed_tars_are_refused_with_words(tmp_path: Path) -> None:
    (shard,) = made(tmp_path / "train", 3)
    content = shard.read_bytes()
    for compress, name in ((gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")):
        shard.write_bytes(compress(content))
        with pytest.raises(UserError, match=rf"part-000000.tar: compressed \({name}\): .* unpack"):
            build_index([shard])


Members = list[tuple[str, bytes]]


def tar_of(shard: Path, members: Members, *others: tarfile.TarInfo) -> Path:
    with tarfile.open(shard, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for other in others:
            tar.addfile(other)
    return shard


def test_folders_hidden_files_and_those_of_a_mac_are_no_samples(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("folder.d")
    folder.type = tarfile.DIRTYPE
    members = [
        member
        for name in ("a", "x/a", "./x/y/.z/a")
        for member in (
            (f"{Path(name).parent}/._a.png", b"\0\5\x16\7"),
            (f"{name}.png", IMAGE),
            (f"__MACOSX/{Path(name).parent}/._a.png", b"\0\5\x16\7"),
            (f"sub/__MACOSX/{name}.txt", b""),
            (f"{Path(name).parent}/.DS_Store", b""),
            (f"{name}.cls", b"1"),
        )
    ]
    index = build_index([tar_of(tmp_path / "made.tar", members, folder)])
    assert [index.key(number) for number in range(3)] == ["a", "x/a", "./x/y/.z/a"]


def test_names_with_dots_are_explained_in_a_line(tmp_path: Path) -> None:
    def dotted(*names: str) -> Members:
        files = (("png", IMAGE), ("cls", b"1"))
        return [(f"{name}.{ending}", content) for name in names for ending, content in files]

    why = (
        r"; a sample's name ends at its first dot, so `.*` is .*: write other dots in names as `_`"
    )
    one_key = [f"22.{number:05d}" for number in range(300)]
    for names, message in (
        (one_key, r"sample '22': a sample has one .*, … \(600 in all\)"),
        (
            ["22.0", "23.1"],
            r"sample '23' has the columns 1.cls, 1.png, the ones before it 0.cls, 0",
        ),
    ):
        with pytest.raises(UserError, match=f"made.tar: {message}.*{why}$") as caught:
            build_index([tar_of(tmp_path / "made.tar", dotted(*names))])
        assert len(str(caught.value)) < 800
    with pytest.raises(UserError, match=r"columns \.txt cannot be decoded.*npy, .*cls$"):
        build_index([tar_of(tmp_path / "made.tar", [("a.txt", b""), ("a.cls", b"1")])])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.npy", ARRAY)], r"sample 'a': a sample has one image or text and one class number"),
        ([("a.npy", ARRAY), ("a.txt", b"")], r"sample 'a': columns \.txt cannot be decoded"),
        ([("a.npy", ARRAY), ("a.cls", b"two")], r"sample 'a': column \.cls: a class number is"),
        ([("a.npy", ARRAY), ("a.cls", b"7")], r"sample 'a' is of class 7, but the classes are 0"),
        ([("a.npy", ARRAY), ("a.cls", b"99999999999")], r"99999999999"),
        ([("a.npy", b"x"), ("a.cls", b"1")], r"sample 'a': column \.npy: "),
        ([("a.npy", ARRAY[:-1]), ("a.cls", b"1")], r"'a': .* takes 4 bytes, but 3 follow"),
        ([("a.npy", ARRAY), ("a.NPY", ARRAY)], r"sample 'a' has two files \.npy"),
        ([("a.npy", npy(np.zeros((2, 2)))), ("a.cls", b"1")], r"this is float64 of shape \(2, 2\)"),
        (
            [("a.npy", ARRAY), ("a.cls", b"1"), ("b.x.npy", ARRAY), ("b.cls", b"1")],
            r"sample 'b' has the columns cls, x.npy, the ones before it cls, npy",
        ),
        ([("README", b"no sample")], r"holds no samples"),
    ],
)
def test_sample_that_cannot_be_used_is_named(
    tmp_path: Path, members: Members, message: str
) -> None:
    with pytest.raises(UserError, match=f"made.tar: .*{message}"):
        build_index([tar_of(tmp_path / "made.tar", members)], num_classes=7)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], r"no shards given"),
        (["{root}/none.tar"], r"none.tar: no such shards"),
        (["{root}/none-*.tar"], r"none-\*.tar: no such shards"),
        (["{root}/empty"], r"empty: no such shards"),
        (["{root}/train/part-{{000000..000002}}.tar"], r"part-000002.tar: no such shards"),
        (["{root}/train", "{root}/train/part-000000.tar"], r"named more than once: part-000000"),
        (["{root}/train", "{root}/other"], r"lie in one folder, not: .*other, .*train"),
        (["{root}/train/part-{{0..1.tar"], r"braces do not match"),
    ],
)
def test_wrong_patterns_are_named(tmp_path: Path, patterns: list[str], message: str) -> None:
    for name in ("train", "other"):
        made(tmp_path / name, 12)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        build_index([pattern.format(root=tmp_path) for pattern in patterns])


def test_shards_must_agree_and_have_what_was_written(tmp_path: Path) -> None:
    first = {"png": IMAGE, "cls": b"1"}
    second = {"npy": npy(np.zeros((4, 6, 3), np.uint8)), "cls": b"1"}
    mixed = write_shards(tmp_path / "mixed", [first] * 10 + [second] * 3)
    with pytest.raises(UserError, match=r"000001.tar: sample 'sample10' has the columns cls, npy"):
        build_index(mixed)
    shards = made(tmp_path / "train")
    with pytest.raises(UserError, match=r"is of class 4, but the classes are 0 … 3"):
        build_index(shards, num_classes=4)
    with pytest.raises(UserError, match=r"36 samples were written, but the shards hold 35"):
        indexed(shards, expected_samples=36)
    lock = filelock.FileLock(tmp_path / "train" / ".index.lock")
    with lock, pytest.raises(UserError, match=r"train: is being indexed by another process"):
        build_index(shards)
    assert build_index(shards, num_classes=9).num_classes == 9


def test_what_was_scanned_is_not_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[str] = []
    scan = shard_table.scan_shard

    def watched(path: Path, **settings: Any) -> Any:
        scanned.append(path.name[-5])
        return scan(path, **settings)

    monkeypatch.setattr(shard_table, "scan_shard", watched)
    shards = made(tmp_path / "train", json=b"{}")
    whole = shards[2].read_bytes()
    shards[2].write_bytes(whole[:-10240])
    with pytest.raises(UserError, match=r"part-000002.tar: cut short"):
        build_index(shards, ignored_columns=["json"])
    assert scanned == ["0", "1", "2"]
    shards[2].write_bytes(whole)
    # What was found of other columns is no answer.
    with pytest.raises(UserError, match=r"columns \.json cannot be decoded"):
        build_index(shards)
    assert scanned == ["0", "1", "2", "0"]
    scanned.clear()
    # One that was changed since is scanned again.
    os.utime(shards[0], ns=(1, 1))
    build_index(shards, ignored_columns=["json"])
    assert scanned == ["0", "2", "3"]


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
    program = "import sys, test_data_index_build as test; test.build_and_stop(sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "train")],
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


@pytest.mark.parametrize("limit", [100, 1100])
def test_a_disk_that_is_full_is_named(tmp_path: Path, limit: int) -> None:
    """A limit of the size of files, which fails as a full disk does, in scanning or in joining."""
    photos = make_photos(tmp_path / "photos", 25)
    shutil.rmtree(photos.directory / "index")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError) as raised:
            build_index([photos.directory])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    words = f"{photos.directory}: cannot be indexed: [Errno 27] File too large"
    assert str(raised.value).startswith(words)
    assert not (photos.directory / "index").exists()
    assert build_index([photos.directory]).fingerprint == photos.fingerprint


def zeroed(shard: Path, offset: int) -> None:
    overwrite(shard, offset, bytes(512))
    with tarfile.open(shard) as tar:
        assert len(tar.getmembers()) == 8  # what tarfile makes of it, without an error


def cut_at(into_member: int) -> Callable[[Path, int], None]:
    return lambda shard, offset: os.truncate(shard, offset + into_member)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (zeroed, r"damaged: no valid tar.*byte {offset}"),
        (lambda shard, offset: overwrite(shard, offset, b"\xff"), r"damaged: no valid tar header"),
        (cut_at(0), r"cut short"),
        (cut_at(200), r"damaged"),
        (cut_at(600), r""),
    ],
)
def test_damaged_tars_are_not_indexed(
    make_numbered: MakeNumbered, damage: Callable[[Path, int], None], message: str
) -> None:
    directory = make_numbered(25).directory
    shutil.rmtree(directory / "index")
    shard = directory / "part-000001.tar"
    with tarfile.open(shard) as tar:
        offset = tar.getmembers()[8].offset
    damage(shard, offset)
    with pytest.raises(UserError, match=f"part-000001.tar: .*{message.format(offset=offset)}"):
        build_index([directory])


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
    names = [f"train-{number:06d}.tar" for number in range(num_shards)]
    for name in names:
        with (directory / name).open("wb") as file:
            file.truncate(10_240)
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
        shards=tuple(
            ShardMeta(name=name, bytes=10_240, num_samples=per_shard, sha256="0" * 64)
            for name in names
        ),
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

    assert min(seconds() for _ in range(3)) < 0.5
    index = SampleIndex.open(tmp_path / "large")
    assert len(pickle.dumps(index)) < 200_000
    for number in (0, 999_999, 1_279_999):
        assert index.key(number) == f"n{number:08d}"
