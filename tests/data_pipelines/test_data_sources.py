"""Where shards can be: what every kind of location needs, what is refused, no secret shown."""

import importlib.util
import json
import logging
import pickle
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from shards import read_all, read_numbers

from data_pipelines import SampleIndex, ShardReader, UserError
from data_pipelines.index import build_index
from data_pipelines.inspection import check_dataset
from data_pipelines.reading import Split, open_split
from data_pipelines.sources import (
    ByteRange,
    LocalFolder,
    NoRangesError,
    ShardSource,
    SourceOptions,
    StoredFile,
    open_source,
)
from data_pipelines.sources.redaction import without_secrets

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


def test_the_index_of_local_and_remote_shards_may_lie_elsewhere(
    index: SampleIndex, in_memory: Any, tmp_path: Path
) -> None:
    shutil.rmtree(index.directory / "index")
    in_memory.rm("/bucket/split/index", recursive=True)
    remote = "memory://bucket/split"
    before = sorted(index.directory.iterdir())
    for name, pattern in {
        "local": str(index.directory),
        "folder": remote,
        "star": f"{remote}/part-*.tar",
        "braces": f"{remote}/part-{{000000..000003}}.tar",
    }.items():
        out = tmp_path / "made" / name
        assert build_index([pattern], out=out, num_classes=7).fingerprint == index.fingerprint
        assert read_all(open_split(out)) == EVERYTHING
        found = pickle.loads(pickle.dumps(SampleIndex.open(out)))
        assert read_numbers(ShardReader(found), [31, 2]) == [31, 2]
        assert [path.name for path in out.iterdir()] == ["index"]
        # Other shards may lie there, which another index has.
        split = SampleIndex.open(out).shards_in
        assert split == (remote if name != "local" else str(index.directory))
    assert sorted(index.directory.iterdir()) == before
    assert check_dataset(tmp_path / "made/local").is_whole
    with pytest.raises(UserError, match=r"its shards are at memory://bucket/split; local ones are"):
        check_dataset(tmp_path / "made/star")
    index.shard_path(2).unlink()
    with pytest.raises(UserError, match=r"numbered/part-000002.tar: missing, though the index"):
        open_split(tmp_path / "made/local")
    with pytest.raises(UserError, match=r"the index cannot be written here: .*; --out names ano"):
        build_index([index.directory], out=index.shard_path(0) / "file")


def test_indexing_remote_shards_goes_on_where_it_was(in_memory: Any, tmp_path: Path) -> None:
    in_memory.rm("/bucket/split/index", recursive=True)
    last, out = "/bucket/split/part-000003.tar", tmp_path / "out"
    content = in_memory.cat(last)
    in_memory.pipe(last, content[:-10240])
    with pytest.raises(UserError, match=r"^memory://bucket/split/part-000003.tar: cut short"):
        build_index(["memory://bucket/split"], out=out)
    assert not list(out.rglob("*.tar"))
    in_memory.pipe(last, content)
    in_memory.pipe("/bucket/split/part-000000.tar", b"not fetched again")
    left = out / ".index.unfinished/000003.fetched"
    left.mkdir()
    (tmp_path / "victim").write_text("kept")
    (left / "part-000003.tar").symlink_to(tmp_path / "victim")
    assert build_index(["memory://bucket/split"], out=out).num_samples == 40
    assert (tmp_path / "victim").read_text() == "kept"


@pytest.mark.parametrize(
    ("patterns", "out", "message"),
    [
        (["memory://b/x.tar"], None, r"memory://b/x.tar: remote, so say with --out which folder"),
        (["https://u:secret@h/x.tar"], "out", r"https://h/x.tar: has a user, a password or a que"),
        (["https://h/x.tar?key=secret"], "out", r"https://h/x.tar: has a user, a password or a q"),
        (["pipe:cat {name}"], "out", r"pipe:cat .*: not all are URLs of shards"),
        (["memory://b/x.tar", "/y.tar"], "out", r"memory://b/x.tar, /y.tar: not all are URLs"),
        (["memory://b/x.tar", "memory://c/x.tar"], "out", r"lie in one folder, not in memory://b"),
        (["http://h/*.tar"], "out", r"http://h/\*.tar: nothing lists the files there; name"),
        (["memory://nowhere"], "out", r"memory://nowhere/\*.tar: no such shards"),
    ],
)
def test_remote_shards_that_cannot_be_indexed_are_named(
    tmp_path: Path, patterns: list[str], out: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_index(patterns, out=out and tmp_path / out)
    assert "secret" not in str(caught.value)


def test_local_folder_by_path_pattern_and_url(index: SampleIndex) -> None:
    directory = index.directory
    for location in (directory, f"{directory}/part-{{000000..000003}}.tar", f"file://{directory}"):
        assert read_all(open_split(location)) == EVERYTHING
    with pytest.raises(UserError, match=r"is on the machine other; mount it"):
        open_split(f"file://other{directory}")
    split = open_split(directory)
    assert isinstance(split, Split)
    assert isinstance(split.source, LocalFolder)
    assert split.source.where("x.tar") == str(directory / "x.tar")


def test_object_store_through_fsspec(in_memory: Any, options: SourceOptions) -> None:
    split = open_split("memory://bucket/split", options=options)
    assert read_all(split) == EVERYTHING
    reader = ShardReader(split.index, source=split.source)
    assert read_numbers(pickle.loads(pickle.dumps(reader)), [31, 2]) == [31, 2]
    pieces = split.source.pieces("part-000000.tar", num_bytes=split.index.meta.shards[0].bytes)
    assert b"".join(pieces) == in_memory.cat("/bucket/split/part-000000.tar")


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
    location = (
        f"pipe:touch {shlex.quote(str(mark))}; cat {shlex.quote(str(index.directory))}/{{name}}"
    )
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
        f"pipe:echo $$ > {shlex.quote(str(number))}; cat /dev/zero # {{name}}",
        options=pipe_options(tmp_path),
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
    location = f"pipe:cat {shlex.quote(str(index.directory))}/{{name}}"
    split = open_split(location, options=options)
    with pytest.raises(UserError, match=r"gives whole shards only: .* holds the largest"):
        read_all(split)
    with pytest.raises(NoRangesError):
        list(split.source.read_ranges([ByteRange(StoredFile("x", 10**7, "0" * 64), 0, 1)]))


def test_settings_that_cannot_work_or_do_nothing_are_named(tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
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
    ]
    for location, settings, message in cases:
        with pytest.raises(UserError, match=message):
            open_source(location.format(folder=tmp_path), options=SourceOptions(**settings))


def test_names_that_lead_out_of_the_folder_are_refused(
    index: SampleIndex, in_memory: Any, options: SourceOptions
) -> None:
    path = index.directory / "index" / "meta.json"
    content = json.loads(path.read_text())
    for name in ("../outside.tar", "/etc/x.tar", "a/b.tar", "..", "", "a\\b.tar"):
        content["shards"][0]["name"] = name
        path.write_text(json.dumps(content))
        in_memory.put(str(path), "/bucket/split/index/meta.json")
        with pytest.raises(UserError, match=r"meta.json: '.*' is no name of a shard"):
            ShardReader(SampleIndex(index.directory, index.meta.read(path)))
        with pytest.raises(UserError, match=r"meta.json: '.*' is no name of a shard"):
            open_split("memory://bucket/split", options=options)


SECRET = "SECRET"
FILE = StoredFile("a.tar", 10, "0" * 64)


def test_locations_without_their_secrets() -> None:
    for text, shown in (
        ("https://h.org/x/train", "https://h.org/x/train"),
        ("https://SECRET@h.org/x", "https://h.org/x"),
        ("https://u:SECRET@h.org/x", "https://h.org/x"),
        ("sftp://u:p@SECRET@h.org:22/x", "sftp://h.org:22/x"),
        ("https://h.org/x?token=SECRET", "https://h.org/x"),
        ("https://u:SECRET@h.org/x y?a=1&token=SECRET#x", "https://h.org/x y"),
        ("simplecache::ftp://u:SECRET@h.org/x", "simplecache::ftp://h.org/x"),
        (
            "cannot open 'ftp://u:SECRET@h/x?k=SECRET' (https://v:SECRET@g/y)",
            "cannot open 'ftp://h/x' (https://g/y)",
        ),
        ("s3://bucket/a@b/train", "s3://bucket/a@b/train"),
        ("/data/a@b/train?", "/data/a@b/train?"),
    ):
        assert without_secrets(text) == shown
    message = "wrong password SECRET of u:SECRET@h.org/x"
    shown = without_secrets(message, of="sftp://u:SECRET@h.org/x")
    assert shown == "wrong password … of h.org/x"
    assert without_secrets(message, of="sftp://h.org/x") == message


class _Unreachable(fsspec.AbstractFileSystem):
    """A file system whose errors tell everything."""

    protocol = "unreachable"

    def size(self, path: str) -> int:
        raise OSError(f"530 login failed: unreachable://user:{SECRET}@host/{path}")

    open = size


def read(source: ShardSource) -> None:
    list(source.read_ranges([ByteRange(FILE, 0, 10)]))


def fetch(source: ShardSource) -> None:
    list(source.pieces("a.tar", num_bytes=10))


@pytest.mark.parametrize("use", [read, fetch])
def test_sources_that_cannot_be_reached_show_no_secret(
    use: Callable[[ShardSource], None], caplog: pytest.LogCaptureFixture
) -> None:
    fsspec.register_implementation("unreachable", _Unreachable, clobber=True)
    caplog.set_level(logging.DEBUG, logger="data_pipelines")
    for location, options in (
        ("unreachable://user:SECRET@host/split", SourceOptions()),
        ("nowhere://user:SECRET@host/split", SourceOptions()),
        ("http://user:SECRET@127.0.0.1:1/split?token=SECRET", SourceOptions(num_retries=0)),
        ("ftp://user:SECRET@127.0.0.1:1/split", SourceOptions()),
    ):
        source = open_source(location, options=options)
        assert SECRET not in source.where("a.tar")
        assert source.where("a.tar").endswith("/split/a.tar")
        with pytest.raises(UserError) as raised:
            use(pickle.loads(pickle.dumps(source)))
        assert SECRET not in str(raised.value) + caplog.text
        assert str(raised.value).startswith(location.partition("://")[0] + "://")


def test_refused_locations_show_no_secret() -> None:
    for location, options in (
        ("https://u:SECRET@h.invalid/x", SourceOptions()),
        ("https://h.invalid/x?token=SECRET", SourceOptions()),
        ("sftp://u:SECRET@h.invalid/x", SourceOptions(num_retries=1)),
        ("https://u:SECRET@h.invalid/x", SourceOptions(storage_options={"a": 1})),
        ("https://u:SECRET@h.invalid/x#part", SourceOptions()),
        ("https://u:SECRET@/x?token=SECRET", SourceOptions(cache_dir=Path("cache"))),
        ("file://u:SECRET@host/x", SourceOptions()),
        ("https://u:SECRET@[::1/x", SourceOptions()),
        ("https://u:SECRET@[x]/x", SourceOptions()),
        ("file://u:SECRET@[::1/x", SourceOptions()),
    ):
        with pytest.raises(UserError) as raised:
            open_split(location, options=options)
        assert SECRET not in str(raised.value)
