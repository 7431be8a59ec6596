"""Where shards can be: what every kind of location needs, and what is refused."""

import importlib.util
import json
import pickle
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from numbered import read_all, read_numbers

from data_pipelines import SampleIndex, ShardReader, UserError
from data_pipelines.reading import Split, open_split
from data_pipelines.sources import (
    ByteRange,
    LocalFolder,
    NoRangesError,
    SourceOptions,
    StoredFile,
    open_source,
)

MakeNumbered = Callable[..., SampleIndex]
EVERYTHING = list(range(40))


@pytest.fixture
def index(make_numbered: MakeNumbered) -> SampleIndex:
    return make_numbered(40)


@pytest.fixture
def options(tmp_path: Path) -> SourceOptions:
    return SourceOptions(cache_dir=tmp_path / "cache")


@pytest.fixture
def in_memory(index: SampleIndex) -> Iterator[Any]:
    """The file system fsspec keeps in memory, with the split in its folder /bucket."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{index.directory}/", "/bucket/split/", recursive=True)
    yield memory
    memory.rm("/bucket", recursive=True)


def test_local_folder_by_path_pattern_and_url(index: SampleIndex) -> None:
    directory = index.directory
    for location in (directory, f"{directory}/part-{{000000..000003}}.tar", f"file://{directory}"):
        assert read_all(open_split(location)) == EVERYTHING
    with pytest.raises(UserError, match=r"is on the machine other; mount it"):
        open_split(f"file://other{directory}")


def test_object_store_through_fsspec(in_memory: Any, options: SourceOptions) -> None:
    split = open_split("memory://bucket/split", options=options)
    assert read_all(split) == EVERYTHING
    reader = ShardReader(split.index, source=split.source)
    assert read_numbers(pickle.loads(pickle.dumps(reader)), [31, 2]) == [31, 2]
    pieces = split.source.pieces("part-000000.tar", num_bytes=split.index.meta.shards[0].bytes)
    assert b"".join(pieces) == in_memory.cat("/bucket/split/part-000000.tar")


def test_another_file_system_of_fsspec(index: SampleIndex, options: SourceOptions) -> None:
    assert read_all(open_split(f"local://{index.directory}", options=options)) == EVERYTHING


def test_ranges_of_an_object_store_come_in_order_and_in_bounded_batches(
    in_memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = in_memory.cat("/bucket/split/part-000001.tar")
    file = StoredFile("part-000001.tar", len(content), "")
    asked: list[int] = []
    original = type(in_memory).cat_ranges

    def counted(self: Any, paths: list[str], *rest: Any, **named: Any) -> Any:
        asked.append(len(paths))
        return original(self, paths, *rest, **named)

    monkeypatch.setattr(type(in_memory), "cat_ranges", counted)
    source = open_source("memory://bucket/split")
    ranges = [ByteRange(file, start, start + 7) for start in range(9000, 0, -100)]
    expected = [content[start : start + 7] for start in range(9000, 0, -100)]
    assert list(source.read_ranges(ranges)) == expected
    assert asked == [64, 26]


def test_damage_in_an_object_store_is_named(in_memory: Any, options: SourceOptions) -> None:
    split = open_split("memory://bucket/split", options=options)
    path = "/bucket/split/part-000001.tar"
    content = in_memory.cat(path)
    in_memory.pipe(path, content[:-512])
    where = r"^memory://bucket/split/part-000001.tar: "
    with pytest.raises(UserError, match=rf"{where}\d+ bytes, but \d+ when it was .*'sample12'"):
        list(ShardReader(split.index, source=split.source).read([12]))
    in_memory.rm(path)
    with pytest.raises(UserError, match=rf"{where}missing: no such object"):
        list(ShardReader(split.index, source=split.source).read([12]))
    with pytest.raises(UserError, match=rf"{where}missing: no such object"):
        list(split.source.pieces("part-000001.tar", num_bytes=None))
    in_memory.pipe(path, content)
    # The size was looked at; now it changes under the run.
    assert read_numbers(ShardReader(split.index, source=split.source), [12]) == [12]
    in_memory.pipe(path, content[:5000])
    with pytest.raises(UserError, match=rf"{where}cut short"):
        list(ShardReader(split.index, source=split.source).read([18]))


def test_unknown_protocols_and_missing_packages_are_named() -> None:
    ranges = [ByteRange(StoredFile("a.tar", 1, ""), 0, 1)]
    with pytest.raises(UserError, match=r"^nowhere://x: cannot be opened: Protocol not known"):
        list(open_source("nowhere://x").read_ranges(ranges))
    if importlib.util.find_spec("s3fs") is None:
        with pytest.raises(UserError, match=r"pip install 'msam-scale\[s3\]'`: Install s3fs"):
            list(open_source("s3://bucket/x").read_ranges(ranges))


def pipe_options(tmp_path: Path, **changed: Any) -> SourceOptions:
    settings: dict[str, Any] = {
        "cache_dir": tmp_path / "cache",
        "cache_limit": 10**6,
        "allows_commands": True,
    }
    return SourceOptions(**(settings | changed))


def test_command_is_run_only_when_that_is_switched_on(index: SampleIndex, tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    location = f"pipe:touch {mark}; cat {shlex.quote(str(index.directory))}/{{name}}"
    with pytest.raises(UserError, match=r"^pipe:touch .* not allowed; set allows_commands"):
        open_split(location, options=pipe_options(tmp_path, allows_commands=False))
    assert not mark.exists()
    assert read_all(open_split(location, options=pipe_options(tmp_path))) == EVERYTHING
    assert mark.exists()


def test_command_needs_a_cache_and_the_place_of_the_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gives whole shards only; give a cache_dir and a cache_"):
        open_source("pipe:cat {name}", options=pipe_options(tmp_path, cache_limit=0))
    with pytest.raises(UserError, match=r"says nowhere which file; write \{name\}"):
        open_source("pipe:cat part.tar", options=pipe_options(tmp_path))


def test_failed_and_short_commands_are_named(tmp_path: Path) -> None:
    def pieces(command: str, name: str, num_bytes: int | None) -> bytes:
        source = open_source(f"pipe:{command}", options=pipe_options(tmp_path))
        return b"".join(source.pieces(name, num_bytes=num_bytes))

    assert pieces("printf '%s' {name}", "a b'; exit 3; #.tar", None) == b"a b'; exit 3; #.tar"
    with pytest.raises(UserError, match=r"failed with exit code 3: no such bucket x.tar"):
        pieces("echo 'no such bucket' {name} >&2; exit 3", "x.tar", None)
    with pytest.raises(UserError, match=r"wrote 5 bytes, but the file had 6 when it was indexed"):
        pieces("printf %s {name}", "x.tar", 6)


def test_command_ends_when_nobody_reads_on(tmp_path: Path) -> None:
    number = tmp_path / "number"
    source = open_source(
        f"pipe:echo $$ > {number}; cat /dev/zero # {{name}}", options=pipe_options(tmp_path)
    )
    pieces = source.pieces("x.tar", num_bytes=None)
    assert len(next(pieces)) == 1 << 20
    assert Path("/proc", number.read_text().strip()).exists()
    pieces.close()  # type: ignore[attr-defined]
    assert not Path("/proc", number.read_text().strip()).exists()


def test_whole_shards_that_cannot_be_kept_need_a_source_with_ranges(
    index: SampleIndex, tmp_path: Path
) -> None:
    options = pipe_options(tmp_path, cache_limit=1000)
    split = open_split(f"pipe:cat {index.directory}/{{name}}", options=options)
    with pytest.raises(UserError, match=r"gives whole shards only: .* holds the largest"):
        read_all(split)
    with pytest.raises(NoRangesError):
        list(split.source.read_ranges([ByteRange(StoredFile("x", 10**7, "0" * 64), 0, 1)]))


@pytest.mark.parametrize(
    ("location", "settings", "message"),
    [
        ("{folder}", {"num_retries": 3}, "num_retries: has no effect on /"),
        ("{folder}", {"cache_dir": Path("/tmp/x")}, "cache_dir: has no effect on /"),
        ("{folder}", {"storage_options": {"anon": True}}, "storage_options: has no effect"),
        ("http://host/x", {"storage_options": {"anon": True}}, "storage_options: has no effect"),
        ("http://host/x", {"allows_commands": True}, "allows_commands: has no effect on http"),
        ("memory://x", {"timeout_seconds": 3.0}, "timeout_seconds: has no effect on memory"),
        ("http://", {}, "no URL of a folder"),
        ("http://host/x#y", {}, "no URL of a folder"),
        ("memory://x", {"cache_limit": 5}, "cache_limit: 5 has no effect without a cache_dir"),
        ("memory://x", {"cache_limit": -5}, "cache_limit: -5 is negative"),
        ("http://host/x", {"num_retries": -1}, "num_retries: -1 is negative"),
        ("http://host/x", {"timeout_seconds": 0.0}, "timeout_seconds: 0.0 is no positive number"),
        ("http://host/x", {"max_connections": 0}, "max_connections: 0 is not positive"),
    ],
)
def test_settings_that_cannot_work_or_do_nothing_are_named(
    tmp_path: Path, location: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_source(location.format(folder=tmp_path), options=SourceOptions(**settings))


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/x.tar", "a/b.tar", "..", "", "a\\b.tar"])
def test_names_that_lead_out_of_the_folder_are_refused(
    index: SampleIndex, in_memory: Any, options: SourceOptions, name: str
) -> None:
    meta = index.directory / "index" / "meta.json"
    content = json.loads(meta.read_text())
    (index.directory.parent / "outside.tar").write_bytes(index.shard_path(0).read_bytes())
    content["shards"][0]["name"] = name
    meta.write_text(json.dumps(content))
    in_memory.put(str(meta), "/bucket/split/index/meta.json")
    changed = SampleIndex(index.directory, index.meta.read(meta))
    for attempt in (
        lambda: ShardReader(changed),
        lambda: open_split("memory://bucket/split", options=options),
    ):
        with pytest.raises(UserError, match=r"meta.json: '.*' is no name of a shard"):
            attempt()


def test_split_says_where_its_shards_are(index: SampleIndex) -> None:
    split = open_split(index.directory)
    assert isinstance(split, Split)
    assert isinstance(split.source, LocalFolder)
    assert split.source.where("x.tar") == str(index.directory / "x.tar")
