"""Shards over http: read by ranges; faults of server and network are survived or named."""

import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from file_server import (
    Fault,
    FileServer,
    Handler,
    Request,
    Served,
    hang_up,
    redirect,
    serving,
    status,
)
from shards import read_all, read_numbers

from data_pipelines import (
    MicroBatchLoader,
    SampleIndex,
    ShardReader,
    UserError,
    transform_preset,
)
from data_pipelines.index import build_index
from data_pipelines.reading import Split, open_split
from data_pipelines.sources import (
    ByteRange,
    NoRangesError,
    SourceOptions,
    StoredFile,
    open_source,
    retrying,
)

MakeNumbered = Callable[..., SampleIndex]


@pytest.fixture(scope="module")
def index(numbered_once: Callable[..., Path]) -> SampleIndex:
    """Nobody writes there."""
    return SampleIndex.open(numbered_once(40))


@pytest.fixture(scope="module")
def one_server(index: SampleIndex) -> Iterator[FileServer]:
    with serving(index.directory) as server:
        yield server


@pytest.fixture
def server(one_server: FileServer) -> FileServer:
    """The same for all tests, without what the one before has set."""
    one_server.faults.clear()
    one_server.always = None
    one_server.requests.clear()
    return one_server


@pytest.fixture
def split(
    server: FileServer, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Split]:
    # What it waits for before it tries again has a test of its own.
    monkeypatch.setattr(retrying, "_FIRST_WAIT_SECONDS", 0.01)
    cache = tmp_path_factory.getbasetemp() / "http-cache"
    options = SourceOptions(cache_dir=cache, num_retries=2, timeout_seconds=20, max_connections=3)
    split = open_split(server.url, options=options)
    server.requests.clear()
    yield split
    split.source.close()


def file_of(index: SampleIndex, shard: int) -> StoredFile:
    meta = index.meta.shards[shard]
    return StoredFile(meta.name, meta.bytes, meta.sha256)


def test_shards_on_a_server_get_an_index_here(
    server: FileServer, index: SampleIndex, tmp_path: Path
) -> None:
    shards = f"{server.url}/part-{{000000..000003}}.tar"
    made = build_index([shards], out=tmp_path / "out", num_classes=7)
    assert made.fingerprint == index.fingerprint
    assert not [request for request in server.requests if "index" in str(request)]
    assert read_all(open_split(tmp_path / "out")) == list(range(40))


def test_samples_are_those_of_the_files(split: Split) -> None:
    reader = ShardReader(split.index, source=split.source)
    shuffled = np.random.default_rng(0).permutation(40).tolist()
    for sample_ids in (shuffled, [39], [3, 3, 21], []):
        assert read_numbers(reader, sample_ids) == sample_ids


def test_only_what_is_needed_is_asked_for_and_neighbours_together(
    split: Split, server: FileServer
) -> None:
    reader = ShardReader(split.index, source=split.source)
    assert read_numbers(reader, [5, 6, 7, 31]) == [5, 6, 7, 31]
    assert sorted(request.name for request in server.requests) == [
        "part-000000.tar",
        "part-000003.tar",
    ]
    asked = sum(request.stop - request.start for request in server.requests if request.stop)
    assert asked < split.index.meta.shards[0].bytes / 2


def test_ranges_come_in_order_over_few_connections(split: Split, server: FileServer) -> None:
    server.num_connections = 0
    file = file_of(split.index, 1)
    content = (server.directory / file.name).read_bytes()
    ranges = [ByteRange(file, start, start + 5) for start in range(0, 4000, 100)]
    expected = [content[start : start + 5] for start in range(0, 4000, 100)]
    assert list(split.source.read_ranges(ranges)) == expected
    assert len(server.requests) == 40
    # Three at a time; the connection of the index is kept, and all are used again and again.
    assert server.num_connections <= 3


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        hang_up,
        Served(stop_after=0),
        Served(stop_after=100),
        Served(is_chunked=True, stop_after=100),
    ],
    ids=["500", "429", "hang-up", "no-body", "closes-early", "chunks-end"],
)
def test_failures_that_pass_are_survived_and_told(
    split: Split, server: FileServer, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.extend([fault, fault])
    before = random.getstate()
    reader = ShardReader(split.index, source=split.source)
    assert read_numbers(reader, [12, 14]) == [12, 14]
    assert len(server.requests) == 3
    assert caplog.text.count("trying again in") == 2
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(500), "the server answers 500"),
        (hang_up, ".*Remote end closed connection"),
        (Served(stop_after=100), "the connection broke after 100 bytes"),
    ],
)
def test_failures_that_stay_are_named(
    split: Split, server: FileServer, fault: Fault, message: str
) -> None:
    server.always = fault
    where = rf"^{server.url}/part-000001.tar: cannot be read, tried 3 times: {message}.*'sample12'"
    with pytest.raises(UserError, match=where):
        list(ShardReader(split.index, source=split.source).read([12]))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Served(stop_after=100, stalls=True), "[Rr]ead timed out"),
        (Served(stop_after=100, trickles=True), r"stalled: no more than \d+ bytes came in time"),
    ],
    ids=["stalls", "trickles"],
)
def test_servers_that_stall_are_given_up_and_asked_again(
    split: Split, server: FileServer, fault: Fault, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    def reader(num_retries: int) -> ShardReader:
        options = SourceOptions(num_retries=num_retries, timeout_seconds=0.3)
        source = open_source(server.url, options=options)
        return ShardReader(split.index, source=source)

    server.faults.append(fault)
    patient = reader(5)
    assert read_numbers(patient, [12, 14]) == [12, 14]
    assert len(server.requests) > 1
    assert "trying again in" in caplog.text
    patient.close()
    server.always = fault
    impatient = reader(0)
    with pytest.raises(UserError, match=rf"part-000001.tar: cannot be read, .*{message}"):
        list(impatient.read([12]))
    impatient.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(404), "missing: the server answers 404"),
        (status(403), "cannot be read: the server answers 403"),
        (status(206), "Content-Range None, which says nothing"),
        (Served(shifted_by=1), r"answers a request for bytes \d+ … \d+ with bytes"),
        (Served(shifted_by=-1), r"answers a request for bytes \d+ … \d+ with bytes"),
        (Served(headers={"Content-Encoding": "gzip"}), r"sends it compressed \(gzip\)"),
        (Served(ranges=False), r"no range requests.*give a cache_dir and a cache_limit"),
    ],
)
def test_answers_that_are_wrong_are_named_at_once(
    split: Split, server: FileServer, fault: Fault, message: str
) -> None:
    server.always = fault
    with pytest.raises(UserError, match=rf"part-000001.tar: .*{message}.*sample 'sample12'"):
        list(ShardReader(split.index, source=split.source).read([12]))
    assert len(server.requests) == 1


def test_waits_grow_and_follow_the_server(
    split: Split, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", waits.append)
    monkeypatch.setattr(retrying, "_FIRST_WAIT_SECONDS", 0.25)
    asked_to_wait = status(503, headers={"Retry-After": "7"})
    server.faults.extend([status(503), asked_to_wait])
    assert read_numbers(ShardReader(split.index, source=split.source), [12]) == [12]
    # Drawn from the upper half of what is allowed.
    assert 0.125 <= waits[0] <= 0.25
    assert 3.5 <= waits[1] <= 7
    waits.clear()
    retries = retrying.Retries(12, where="there")
    for _ in range(9):
        retries.wait_after(retrying.TransientError("busy"))
    for number, wait in enumerate(waits):
        longest = min(0.25 * 2**number, 30)
        assert longest / 2 <= wait <= longest
    retries.succeeded()
    retries.wait_after(retrying.TransientError("busy"))
    assert waits[-1] <= 0.25


def test_long_files_bear_more_failures_than_are_borne_in_a_row(
    tmp_path: Path, split: Split
) -> None:
    content = random.Random(0).randbytes(5 << 20)
    (tmp_path / "long.tar").write_bytes(content)
    with serving(tmp_path) as server:
        server.faults.extend([Served(stop_after=3 << 19)] * 3)
        source = open_source(server.url, options=SourceOptions(num_retries=1))
        pieces = list(source.pieces("long.tar", num_bytes=len(content)))
        assert len(server.requests) == 4
        source.close()
    assert b"".join(pieces) == content


def test_server_without_ranges_is_told_apart(split: Split, server: FileServer) -> None:
    server.always = Served(ranges=False)
    file = file_of(split.index, 0)
    with pytest.raises(NoRangesError):
        list(split.source.read_ranges([ByteRange(file, 10, 20)]))
    # A whole shard is what it sends anyway.
    whole = ByteRange(file, 0, file.num_bytes)
    (content,) = split.source.read_ranges([whole])
    assert content == (server.directory / file.name).read_bytes()


def test_whole_files_go_on_where_they_stopped(split: Split, server: FileServer) -> None:
    file = file_of(split.index, 0)
    server.faults.extend([Served(stop_after=1000), Served(stop_after=500)])
    pieces = split.source.pieces(file.name, num_bytes=file.num_bytes)
    assert b"".join(pieces) == (server.directory / file.name).read_bytes()
    assert [request.start for request in server.requests] == [0, 1000, 1500]


def test_a_little_progress_between_failures_does_not_go_on_for_ever(
    split: Split, server: FileServer
) -> None:
    file = file_of(split.index, 0)
    server.always = Served(stop_after=50)
    with pytest.raises(UserError, match="tried 3 times: the connection broke after 50 bytes"):
        list(split.source.pieces(file.name, num_bytes=file.num_bytes))
    assert [request.start for request in server.requests] == [0, 50, 100]


def test_whole_files_without_ranges_are_put_together_too(split: Split, server: FileServer) -> None:
    file = file_of(split.index, 0)
    server.faults.append(Served(stop_after=1000))
    server.always = Served(ranges=False, is_chunked=True)
    pieces = split.source.pieces(file.name, num_bytes=file.num_bytes)
    assert b"".join(pieces) == (server.directory / file.name).read_bytes()


def test_bytes_damaged_on_the_way_are_read_again(split: Split, server: FileServer) -> None:
    damaged = Served(flips_bit_at=int(split.index.samples[12]["npy.offset"]) + 130)
    server.faults.append(damaged)
    assert read_numbers(ShardReader(split.index, source=split.source), [12]) == [12]
    assert len(server.requests) == 2
    server.always = damaged
    with pytest.raises(UserError, match=r"part-000001.tar: sample 'sample12': damaged or not what"):
        list(ShardReader(split.index, source=split.source).read([12]))


def test_redirects_are_followed_but_not_for_ever(split: Split, server: FileServer) -> None:
    with serving(server.directory) as other:
        server.always = redirect(other.url)
        assert read_numbers(ShardReader(split.index, source=split.source), [12]) == [12]
        assert other.num_requests("part-000001.tar") == 1
        split.source.close()
    server.always = redirect(server.url)
    with pytest.raises(UserError, match="Exceeded 5 redirects"):
        list(ShardReader(split.index, source=split.source).read([12]))


def test_server_that_is_gone_is_named(split: Split, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        port = server.server_port
    gone = open_source(
        f"http://user:secret@127.0.0.1:{port}/numbered?token=secret",
        options=SourceOptions(num_retries=0),
    )
    with pytest.raises(UserError, match=rf"^http://127.0.0.1:{port}/.*refused") as caught:
        list(ShardReader(split.index, source=gone).read([12]))
    assert "secret" not in str(caught.value)
    gone.close()


def test_token_names_and_wish_for_plain_bytes_reach_the_server(
    split: Split, server: FileServer
) -> None:
    seen: list[tuple[str, str | None]] = []

    def note(handler: Handler, request: Request) -> None:
        seen.append((handler.path, handler.headers["Accept-Encoding"]))
        hang_up(handler, request)

    server.always = note
    source = open_source(f"{server.url}/a b/?token=x%2Fy", options=SourceOptions(num_retries=0))
    with pytest.raises(UserError):
        list(source.pieces("part 0#.tar", num_bytes=None))
    assert seen == [("/a%20b/part%200%23.tar?token=x%2Fy", "identity")]
    source.close()


def test_source_in_use_can_be_forked_and_pickled(split: Split) -> None:
    reader = ShardReader(split.index, source=split.source)
    everything = list(range(40))
    assert read_numbers(reader, everything) == everything
    child = os.fork()
    if child == 0:  # no pytest here: whatever happens, the child ends at once
        code = 1
        try:
            code = int(read_numbers(reader, everything) != everything)
        finally:
            os._exit(code)
    assert read_numbers(reader, everything) == everything
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other = pickle.loads(pickle.dumps(reader))
    assert read_numbers(other, everything) == everything
    other.close()


def test_index_is_fetched_once_and_checked(server: FileServer, tmp_path: Path) -> None:
    location = server.url
    options = SourceOptions(cache_dir=tmp_path / "cache", num_retries=0)
    samples = "index/samples.npy"
    assert read_all(open_split(location, options=options)) == list(range(40))
    assert read_all(open_split(location, options=options)) == list(range(40))
    assert server.num_requests(samples) == 1
    with pytest.raises(UserError, match="is remote: give a cache_dir"):
        open_split(location)
    # A copy that was damaged since is fetched again.
    (kept,) = (tmp_path / "cache" / "indexes").glob("*/index/samples.npy")
    content = bytearray(kept.read_bytes())
    content[-3] ^= 1
    kept.write_bytes(content)
    assert read_all(open_split(location, options=options)) == list(range(40))
    assert server.num_requests(samples) == 2


def test_damaged_remote_index_is_named(make_numbered: MakeNumbered, tmp_path: Path) -> None:
    index = make_numbered(40)
    options = SourceOptions(cache_dir=tmp_path / "cache", num_retries=0)
    with serving(index.directory) as server:
        for name, keep, message in (
            ("samples.npy", -1, "samples.npy: cannot be read"),
            ("keys.txt", 100, "keys.txt: .* names for 40 samples; damaged"),
            ("meta.json", 100, "meta.json: cannot be read"),
        ):
            path = index.directory / "index" / name
            content = path.read_bytes()
            path.write_bytes(content[:keep])
            with pytest.raises(UserError, match=rf"^{server.url}/index/{message}"):
                open_split(server.url, options=options)
            if name == "samples.npy":
                path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
                with pytest.raises(UserError, match=rf"^{server.url}/index/{name}: changed since"):
                    open_split(server.url, options=options)
            path.unlink()
            with pytest.raises(UserError, match=rf"^{server.url}/index/{name}: missing"):
                open_split(server.url, options=options)
            path.write_bytes(content)
        assert read_all(open_split(server.url, options=options)) == list(range(40))


@pytest.mark.parametrize(("cache_limit", "num_workers"), [(0, 2), (10**7, 0)])
def test_loader_yields_what_it_yields_from_a_local_folder(
    server: FileServer, index: SampleIndex, tmp_path: Path, cache_limit: int, num_workers: int
) -> None:
    def batches(split: Split, num_workers: int) -> list[tuple[list[int], list[int]]]:
        loader = MicroBatchLoader(
            split.index,
            source=split.source,
            order="global",
            seed=1,
            batch_size=8,
            positions=[range(8)],
            transform=transform_preset("none"),
            num_workers=num_workers,
            first_step=0,
            num_steps=10,
        )
        return [(images.flatten().tolist(), labels.tolist()) for images, labels in loader]

    options = SourceOptions(cache_dir=tmp_path / "cache", cache_limit=cache_limit)
    remote = open_split(server.url, options=options)
    expected = batches(open_split(index.directory), 0)
    assert len(expected) == 10
    server.faults.extend([status(503), Served(stop_after=50)])
    assert batches(remote, num_workers) == expected
    remote.source.close()
