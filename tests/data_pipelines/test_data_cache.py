"""The cache of whole shards: its limit, several processes, kill -9, full disks, damage."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np
import pytest
from cache_readers import CONTEXT, start_reading
from file_server import FileServer, Request, Served, serving
from shards import damage_sample, read_all, read_numbers

from data_pipelines import SampleIndex, ShardReader, UserError
from data_pipelines.reading import Split, open_split
from data_pipelines.sources import SourceOptions, StoredFile, open_source

MakeNumbered = Callable[..., SampleIndex]
EVERYTHING = list(range(60))
PLENTY = 10**7


@pytest.fixture
def index(make_numbered: MakeNumbered) -> SampleIndex:
    return make_numbered(60)  # six shards


@pytest.fixture
def server(index: SampleIndex) -> Iterator[FileServer]:
    with serving(index.directory) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def open_cached(server: FileServer, cache: Path, *, limit: int = PLENTY) -> Split:
    split = open_split(
        server.url, options=SourceOptions(cache_dir=cache, cache_limit=limit, num_retries=0)
    )
    server.requests.clear()
    return split


def files_of(index: SampleIndex) -> list[StoredFile]:
    return [StoredFile(shard.name, shard.bytes, shard.sha256) for shard in index.meta.shards]


def kept_in(cache: Path) -> dict[str, int]:
    """Returns the size of everything in the cache, by name."""
    return {
        path.name: path.stat().st_size for path in (cache / "shards").iterdir() if path.is_file()
    }


def names_of(index: SampleIndex, *shards: int) -> set[str]:
    return {f"{index.meta.shards[shard].sha256}.tar" for shard in shards}


def test_each_shard_is_fetched_once_and_whole(
    index: SampleIndex, server: FileServer, cache: Path
) -> None:
    split = open_cached(server, cache)
    reader = ShardReader(split.index, source=split.source)
    for epoch in range(3):
        shuffled = np.random.default_rng(epoch).permutation(60).tolist()
        for start in range(0, 60, 6):
            sample_ids = shuffled[start : start + 6]
            assert read_numbers(reader, sample_ids) == sample_ids
    reader.close()
    assert sorted(server.requests) == [Request(file.name, 0, None) for file in files_of(index)]
    assert set(kept_in(cache)) == names_of(index, *range(6))
    # Another run needs the network for nothing but what the index says about itself.
    assert read_all(open_cached(server, cache)) == EVERYTHING
    assert server.requests == []
    # Local shards, on a slow disk, can be cached as well.
    options = SourceOptions(cache_dir=cache / "local", cache_limit=PLENTY)
    assert read_all(open_split(index.directory, options=options)) == EVERYTHING
    assert set(kept_in(cache / "local")) == names_of(index, *range(6))


def test_least_recently_used_shards_are_thrown_away(
    index: SampleIndex, server: FileServer, cache: Path
) -> None:
    size = files_of(index)[0].num_bytes
    split = open_cached(server, cache, limit=3 * size + 10)
    reader = ShardReader(split.index, source=split.source)
    for shard, kept in (
        (0, {0}),
        (1, {0, 1}),
        (2, {0, 1, 2}),
        (0, {0, 1, 2}),
        (3, {0, 2, 3}),
        (0, {0, 2, 3}),
        (4, {0, 3, 4}),
    ):
        assert read_numbers(reader, [10 * shard + 4]) == [10 * shard + 4]
        assert set(kept_in(cache)) == names_of(index, *kept)
    reader.close()
    assert [request.name[-5] for request in server.requests] == ["0", "1", "2", "3", "4"]


def test_shard_above_the_limit_is_read_from_where_it_is(
    server: FileServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_all(open_cached(server, cache, limit=100)) == EVERYTHING
    assert kept_in(cache) == {}
    assert caplog.text.count("more than cache_limit 100") == 1


def test_shard_thrown_away_while_it_is_read_stays_readable(
    index: SampleIndex, server: FileServer, cache: Path
) -> None:
    split = open_cached(server, cache, limit=files_of(index)[0].num_bytes + 10)
    reader = ShardReader(split.index, source=split.source)
    # Two runs of one shard, and between them another shard takes its place.
    running = reader.read([1, 2, 8])
    place, sample = next(running)
    assert (place, sample.label) == (0, 1)
    second = open_cached(server, cache, limit=files_of(index)[0].num_bytes + 10)
    assert read_numbers(ShardReader(second.index, source=second.source), [15]) == [15]
    assert set(kept_in(cache)) == names_of(index, 1)
    assert [(place, sample.label) for place, sample in running] == [(1, 2), (2, 1)]
    reader.close()
    second.source.close()


def test_download_with_wrong_bytes_is_fetched_again(
    index: SampleIndex, server: FileServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged_at = int(index.samples[3]["npy.offset"]) + 130
    split = open_cached(server, cache)
    server.faults.append(Served(flips_bit_at=damaged_at))
    assert read_all(split) == EVERYTHING
    assert server.num_requests("part-000000.tar") == 2
    assert caplog.text.count("its SHA-256 is another; fetching it again") == 1


def test_shard_that_is_damaged_where_it_is_costs_only_its_damaged_sample(
    index: SampleIndex, server: FileServer, cache: Path
) -> None:
    damage_sample(index, 3)
    split = open_cached(server, cache)
    reader = ShardReader(split.index, source=split.source)
    others = [*range(3), *range(4, 60)]
    assert read_numbers(reader, others) == others
    with pytest.raises(UserError, match=rf"{server.url}/part-000000.tar: sample 'sample3': damag"):
        read_numbers(reader, [3])
    reader.close()
    assert set(kept_in(cache)) == names_of(index, 1, 2, 3, 4, 5)


def test_download_that_breaks_leaves_nothing(server: FileServer, cache: Path) -> None:
    split = open_cached(server, cache)
    server.always = Served(stop_after=3000)
    with pytest.raises(UserError, match=r"part-000000.tar: .* broke after 3000 bytes"):
        read_all(split)
    assert kept_in(cache) == {}
    server.always = None
    assert read_all(split) == EVERYTHING


def test_shard_damaged_in_the_cache_is_fetched_again(
    index: SampleIndex, server: FileServer, cache: Path
) -> None:
    assert read_all(open_cached(server, cache)) == EVERYTHING
    flipped, cut = (cache / "shards" / name for name in sorted(names_of(index, 0, 1)))
    (shard,) = (n for n in (0, 1) if names_of(index, n) == {flipped.name})
    with flipped.open("r+b") as file:
        file.seek(int(index.samples[10 * shard + 3]["npy.offset"]) + 130)
        file.write(b"\x55")
    os.truncate(cut, 5000)
    assert read_all(open_cached(server, cache)) == EVERYTHING
    assert sorted(request.name[-5] for request in server.requests) == ["0", "1"]


def test_symbolic_links_and_impossible_folders_are_refused(
    index: SampleIndex, server: FileServer, cache: Path, tmp_path: Path
) -> None:
    split = open_cached(server, cache)
    (name,) = names_of(index, 0)
    (cache / "shards" / name).symlink_to(index.shard_path(0))
    with pytest.raises(UserError, match=rf"{name}: a symbolic link, .*; remove it"):
        read_all(split)
    (cache / "shards" / name).unlink()
    victim = tmp_path / "victim"
    victim.write_text("stays as it is")
    (cache / "shards" / name).with_suffix(".partial").symlink_to(victim)
    assert read_all(split) == EVERYTHING
    assert victim.read_text() == "stays as it is"
    options = SourceOptions(cache_dir=victim, cache_limit=5)
    with pytest.raises(UserError, match=r"cache_dir: .*victim/shards: cannot be made"):
        open_source(server.url, options=options)


def test_processes_fetch_each_shard_once_and_keep_to_the_limit_together(
    index: SampleIndex, server: FileServer, cache: Path
) -> None:
    results = CONTEXT.Queue()
    files = files_of(index)
    limit = 3 * files[0].num_bytes
    sizes: list[int] = []
    server.on_request = lambda request: sizes.append(total(cache))
    readers = []
    for number in range(3):
        order = [files[(place + number) % 6] for place in range(6)] * 2
        readers.append(start_reading(server.url, cache, limit, order, results))
    assert [results.get(timeout=60) for _ in readers] == [True] * 3
    for reader in readers:
        reader.join()
    # At every request, what was being fetched is in the folder with its full size.
    assert len(sizes) >= 6
    assert 0 < max(*sizes, total(cache)) <= limit
    together = cache / "together"
    server.requests.clear()
    readers = [start_reading(server.url, together, PLENTY, files, results) for _ in range(3)]
    assert [results.get(timeout=60) for _ in readers] == [True] * 3
    for reader in readers:
        reader.join()
    assert sorted(request.name for request in server.requests) == [file.name for file in files]
    assert set(kept_in(together)) == names_of(index, *range(6))


def test_shards_get_their_name_only_while_nobody_adds_up_sizes(
    index: SampleIndex, server: FileServer, cache: Path
) -> None:
    split = open_cached(server, cache)
    lock = filelock.FileLock(cache / "shards" / "locks" / "cache.lock", thread_local=False)
    seen: list[set[str]] = []

    def look_and_release() -> None:
        seen.append(set(kept_in(cache)))
        lock.release()

    def hold(request: Request) -> None:
        lock.acquire()
        threading.Timer(0.3, look_and_release).start()

    server.on_request = hold
    assert read_numbers(ShardReader(split.index, source=split.source), [5]) == [5]
    split.source.close()
    (name,) = names_of(index, 0)
    assert seen == [{name.replace(".tar", ".partial")}]
    assert set(kept_in(cache)) == {name}


def total(cache: Path) -> int:
    sizes = []
    for path in (cache / "shards").glob("*.*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # renamed: it is counted under its other name, or thrown away
            continue
    return sum(sizes)


def test_killed_download_is_waited_for_by_nobody_and_cleared_away(
    index: SampleIndex, server: FileServer, cache: Path
) -> None:
    files = files_of(index)
    server.faults.extend([Served(stop_after=9000, stalls=True)] * 2)
    results = CONTEXT.Queue()
    (name,), (other,) = names_of(index, 0), names_of(index, 1)
    left = name.replace(".tar", ".partial")
    first = start_reading(server.url, cache, PLENTY, files[:1], results)
    wait_until(lambda: len(bytes_of(cache / "shards" / left)) > 8000)
    is_reading = CONTEXT.Event()
    second = start_reading(server.url, cache, PLENTY, files[:1], results, is_reading)
    assert is_reading.wait(60)
    # Time to come as far as waiting; the test also holds when it does not.
    time.sleep(0.2)
    assert len(server.requests) == 1
    for number, reader in enumerate((first, second)):  # who waited begins anew, and is killed too
        wait_until(lambda number=number: len(server.requests) == number + 1)
        wait_until(lambda: len(bytes_of(cache / "shards" / left)) > 8000)
        assert reader.pid is not None
        os.kill(reader.pid, signal.SIGKILL)
        reader.join()
    assert set(kept_in(cache)) == {left}
    # It counts towards the limit until somebody needs the room, here for another shard.
    split = open_cached(server, cache, limit=files[0].num_bytes + 10)
    for sample_id, kept in ((15, other), (5, name)):
        assert read_numbers(ShardReader(split.index, source=split.source), [sample_id]) == [
            sample_id
        ]
        assert set(kept_in(cache)) == {kept}
    split.source.close()


def bytes_of(path: Path) -> bytes:
    return path.read_bytes().rstrip(b"\0") if path.exists() else b""


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened in a minute")


@contextmanager
def small_disk(path: Path, *, num_bytes: int) -> Iterator[None]:
    """Mounts a file system of a certain size."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk needs to be root: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_full_disk_is_survived(
    index: SampleIndex, server: FileServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = files_of(index)[0].num_bytes
    page = 4096
    disk = (2 * size // page + 3) * page  # two shards fit, and some small files
    with small_disk(cache, num_bytes=disk + 4 * page):
        split = open_cached(server, cache)
        assert read_all(split) == EVERYTHING
        assert 1 <= len(kept_in(cache)) <= 2
        assert not [name for name in kept_in(cache) if name.endswith(".partial")]
        assert read_all(split) == EVERYTHING
        assert caplog.text.count("No space left on device; such shards are read from where") == 1
        # All of it taken by somebody else, so that not even a lock can be made.
        for path in (cache / "shards" / "locks").iterdir():
            path.unlink()
        fill(cache / "others")
        assert read_all(split) == EVERYTHING
        split.source.close()
    assert caplog.text.count("No space left") == 1


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in (4096, 64):
            try:
                while True:
                    file.write(bytes(piece))
            except OSError:
                continue
