"""Indexes whose fingerprints fit and whose content does not, and files that are no index."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from memory_bound import bounded

from data_pipelines import SampleIndex, ShardReader
from data_pipelines.errors import UserError
from data_pipelines.index import TokenMeta, build_index, index_shards
from data_pipelines.index.format import IndexMeta, fingerprint_of
from data_pipelines.reading.remote_index import fetch_index
from data_pipelines.sources import LocalFolder

_SIDE = 4


def _npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def _split(folder: Path, column: str, content: bytes, **options: Any) -> Path:
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "part-000000.tar")) as writer:
        for number in range(4):
            writer.write({"__key__": f"s{number}", column: content, "cls": str(number % 2)})
    given = {"num_classes": 2, "preshuffle_seed": None, "created_by": "a test", **options}
    index_shards([folder / "part-000000.tar"], split="made", **given)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return _split(tmp_path / "images", "npy", _npy(np.zeros((_SIDE, _SIDE, 3), np.uint8)))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    tokens = TokenMeta(rows=("input_ids",))
    return _split(tmp_path / "texts", "tokens.npy", _npy(np.ones((1, 5), "<i4")), tokens=tokens)


def _rewrite(folder: Path, change: Callable[[Any, dict[str, Any]], Any]) -> None:
    """Changes the table and meta.json, and makes the fingerprint that fits."""
    index = folder / "index"
    samples, meta = np.load(index / "samples.npy"), json.loads((index / "meta.json").read_text())
    change(samples, meta)
    np.save(index / "samples.npy", samples)
    try:
        read = IndexMeta.model_validate_json(json.dumps(meta))
        meta["fingerprint"] = fingerprint_of(index, read)
    except ValueError:
        pass  # refused for what it says before its fingerprint is looked at
    (index / "meta.json").write_text(json.dumps(meta))


def _entry(field: str, value: int) -> Callable[[Any, dict[str, Any]], None]:
    def change(samples: Any, meta: dict[str, Any]) -> None:
        samples[field][1] = value

    return change


def _meta(key: str, value: Any) -> Callable[[Any, dict[str, Any]], None]:
    def change(samples: Any, meta: dict[str, Any]) -> None:
        meta[key] = value

    return change


def _shard(key: str, value: Any) -> Callable[[Any, dict[str, Any]], None]:
    def change(samples: Any, meta: dict[str, Any]) -> None:
        meta["shards"][0][key] = value

    return change


_INDEXES = {
    "an offset behind the shard": (_entry("npy.offset", 1 << 40), "behind the end of its shard"),
    "an offset that wraps": (_entry("npy.offset", (1 << 64) - 100), "behind the end of its shard"),
    "a size of 4 GiB": (_entry("npy.size", (1 << 32) - 1), "behind the end of its shard"),
    "a shard that is not there": (_entry("shard", 7), "in shard 7 of 1"),
    "a class that is not there": (_entry("label", 1 << 30), "labels 0 … 1073741824 of 2 classes"),
    "a negative class": (_entry("label", -1), "labels -1 … 1 of 2 classes"),
    "a huge image": (_meta("image_shape", [1 << 20, 1 << 20, 3]), "no shape of an image"),
    "a negative image": (_meta("image_shape", [-4, -4, 3]), "no shape of an image"),
    "a larger image": (_meta("image_shape", [4, 400, 3]), "fewer bytes than image_shape"),
    "many classes": (_meta("num_classes", 10**12), "num_classes: .* less than or equal"),
    "no classes": (_meta("num_classes", 0), "num_classes: .* greater than or equal"),
    "more classes than counts": (_meta("num_classes", 10**6), "counts 2 of 1000000 classes"),
    "many samples": (_meta("num_samples", 1 << 60), "num_samples: .* less than"),
    "negative samples": (_meta("num_samples", -4), "num_samples: .* greater than or equal"),
    "more samples": (_meta("num_samples", 1 << 30), "do not fit meta.json"),
    "a column that is code": (_meta("columns", ["cls", "pyd"]), "columns .pyd cannot be decoded"),
    "a huge shard": (_shard("bytes", 1 << 70), "shards.0.bytes: "),
    "other counts": (_shard("num_samples", 3), "counts other samples of a shard"),
}


@pytest.mark.parametrize("kind", _INDEXES)
def test_hostile_indexes_are_refused(kind: str, images: Path) -> None:
    change, words = _INDEXES[kind]
    _rewrite(images, change)
    with bounded(), pytest.raises(UserError, match=words) as caught:
        SampleIndex.open(images)
    assert str(images) in str(caught.value)


def test_an_index_with_a_fingerprint_that_fits_is_opened(images: Path, texts: Path) -> None:
    for folder in (images, texts):
        _rewrite(folder, lambda samples, meta: None)
        assert SampleIndex.open(folder).num_samples == 4


def test_texts_are_no_longer_than_their_bytes(texts: Path) -> None:
    _rewrite(texts, _entry("length", 1 << 31))
    with bounded(), pytest.raises(UserError, match="more tokens than its bytes can hold"):
        SampleIndex.open(texts)


def _header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("samples.npy", b"x")
    return stream.getvalue()


_DTYPE = "{'descr': '|u1', 'fortran_order': False, 'shape': %s}\n"
_TABLES = {
    "a pickle": _npy(np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "an archive": _archive(),
    "a huge shape": _header(_DTYPE % f"({1 << 62},)"),
    "a shape that wraps": _header(_DTYPE % f"({1 << 40}, {1 << 40})"),
    "a negative shape": _header(_DTYPE % "(-4,)"),
    "a call": _header("__import__('os').system('true')\n"),
    "depth": _header("(" * 9000 + "\n"),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", _TABLES)
def test_hostile_tables_are_refused(kind: str, images: Path) -> None:
    (images / "index" / "samples.npy").write_bytes(_TABLES[kind])
    with bounded(), pytest.raises(UserError, match=r"samples.npy: "):
        SampleIndex.open(images)


def test_hostile_json_is_refused(images: Path) -> None:
    path = images / "index" / "meta.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"meta.json: cannot be read"):
        SampleIndex.open(images)
    path.write_text(json.dumps({"format": "x" * 100_000}))
    with pytest.raises(UserError, match=r"meta.json: format") as caught:
        SampleIndex.open(images)
    assert len(str(caught.value)) < 2000
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room
    with bounded(), pytest.raises(UserError, match=r"meta.json: larger than any index"):
        SampleIndex.open(images)


def test_links_to_other_things_than_files_are_refused(images: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("part-000000.tar", "index/samples.npy", "index"):
        inside, moved = images / name, outside / Path(name).name
        inside.rename(moved)
        inside.symlink_to(moved)
        if name == "index":
            with pytest.raises(UserError, match=r"images/index: a link to .*, which is outside of"):
                SampleIndex.open(images)
        else:
            assert SampleIndex.open(images).num_samples == 4
            for target in ("/dev/zero", outside):
                inside.unlink()
                inside.symlink_to(target)
                with pytest.raises(UserError, match=rf"{inside.name}: is no file"):
                    SampleIndex.open(images)
        inside.unlink()
        moved.rename(inside)
    # A link to the folder is the user's own.
    (tmp_path / "link").symlink_to(images)
    assert SampleIndex.open(tmp_path / "link").num_samples == 4


def test_the_cache_of_a_hub_whose_files_are_links(images: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/0f"
    blobs.mkdir(parents=True)
    (snapshot / "index").mkdir(parents=True)
    for number, path in enumerate(sorted(each for each in images.rglob("*") if each.is_file())):
        inside = path.relative_to(images)
        path.rename(blobs / f"{number}")
        up = Path(*[".."] * (1 + len(inside.parts)))
        (snapshot / inside).symlink_to(up / "blobs" / f"{number}")
    there = SampleIndex.open(snapshot)
    made = build_index([snapshot / "part-*.tar"], out=tmp_path / "own", num_classes=2)
    for index in (there, SampleIndex.open(tmp_path / "own")):
        assert index.fingerprint == made.fingerprint
        assert len(list(ShardReader(index).read(range(4)))) == 4


@pytest.mark.parametrize("place", ["pipe:touch {name}", "elsewhere", "../images"])
def test_indexes_that_say_of_no_place_that_shards_are_there(place: str, images: Path) -> None:
    _rewrite(images, lambda samples, meta: meta.update(shards_in=place))
    with pytest.raises(UserError, match=r"meta.json: shards_in: .* is no place of shards"):
        SampleIndex.open(images)


def test_a_remote_index_names_no_other_place(images: Path, tmp_path: Path) -> None:
    _rewrite(images, lambda samples, meta: meta.update(shards_in="/"))
    with pytest.raises(UserError, match=r"meta.json: its shards are elsewhere, which only"):
        fetch_index(LocalFolder(images), cache_dir=tmp_path / "cache")


def test_pipes_and_devices_are_refused(images: Path) -> None:
    shard = images / "part-000000.tar"
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(UserError, match=r"part-000000.tar: is no file"):
        SampleIndex.open(images)


@pytest.mark.parametrize(
    "name", [".index.lock", ".index.unfinished", ".index.unfinished/000000.npy"]
)
def test_indexing_writes_through_no_links(name: str, images: Path, tmp_path: Path) -> None:
    """A folder from elsewhere may bring them along, to where its user can write."""
    for path in (images / "index").iterdir():
        path.unlink()
    (images / "index").rmdir()
    victim = tmp_path / "victim"
    if name == ".index.unfinished":
        victim.mkdir()
    else:
        victim.write_text("kept")
    (images / name).parent.mkdir(exist_ok=True)
    (images / name).symlink_to(victim)
    with pytest.raises(UserError, match=r"a link, where the index would be written"):
        build_index([images])
    assert list(victim.iterdir()) == [] if victim.is_dir() else victim.read_text() == "kept"


class _Endless(LocalFolder):
    """A server whose answer to one request never ends."""

    def __init__(self, folder: Path, *, endless: str) -> None:
        super().__init__(folder)
        self._endless = f"index/{endless}"

    def pieces(self, name: str, *, num_bytes: int | None) -> Any:
        yield from super().pieces(name, num_bytes=num_bytes)
        while name == self._endless:
            yield bytes(1 << 20)


@pytest.mark.parametrize("name", ["samples.npy", "keys.txt"])
def test_servers_that_never_end_are_refused(name: str, images: Path, tmp_path: Path) -> None:
    with bounded(), pytest.raises(UserError, match=rf"{name}: more than the \d+ bytes"):
        fetch_index(_Endless(images, endless=name), cache_dir=tmp_path / "cache")


def test_hostile_remote_indexes_are_refused(images: Path, tmp_path: Path) -> None:
    _rewrite(images, _entry("npy.size", (1 << 32) - 1))
    with bounded(), pytest.raises(UserError, match="behind the end of its shard"):
        fetch_index(LocalFolder(images), cache_dir=tmp_path / "cache")
