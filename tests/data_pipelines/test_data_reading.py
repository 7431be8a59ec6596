"""Reading by id: results by place, few files open, neighbours together."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from shards import read_numbers

from data_pipelines import SampleIndex, ShardReader
from data_pipelines.reading.runs import plan_runs
from data_pipelines.sources import LocalFolder

MakeNumbered = Callable[..., SampleIndex]


def open_files_below(directory: Path) -> int:
    links = list(Path("/proc/self/fd").iterdir())
    return sum(str(directory) in str(link.readlink()) for link in links if link.is_symlink())


def test_samples_come_back_at_the_place_they_were_asked_for(make_numbered: MakeNumbered) -> None:
    reader = ShardReader(make_numbered(300, per_shard=40))
    shuffled = np.random.default_rng(0).permutation(300).tolist()
    for sample_ids in (shuffled, list(range(300)), [299, 0, 299, 7], [5], []):
        assert read_numbers(reader, sample_ids) == sample_ids


def test_neighbours_are_read_together(make_numbered: MakeNumbered) -> None:
    index = make_numbered(80, per_shard=40)
    starts = index.samples["cls.offset"].astype(np.int64)
    stops = (index.samples["npy.offset"] + index.samples["npy.size"]).astype(np.int64)
    shards = index.samples["shard"].astype(np.int64)
    for max_gap_bytes, expected in ((4096, [40, 40]), (0, [1] * 80)):
        runs = plan_runs(shards, starts=starts, stops=stops, max_gap_bytes=max_gap_bytes)
        assert [len(run.places) for run in runs] == expected


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1 << 25), st.integers(1, 1 << 22))))
def test_runs_cover_every_sample_once_and_stay_bounded(
    extents: list[tuple[int, int, int]],
) -> None:
    # And one that lies within another, which drawn ones rarely do.
    extents = [*extents, (0, 1000, 500), (0, 1100, 20), (0, 1200, 30)]
    shards, starts, sizes = (np.array([e[i] for e in extents], np.int64) for i in range(3))
    runs = list(plan_runs(shards, starts=starts, stops=starts + sizes, max_gap_bytes=4096))
    assert sorted(place for run in runs for place in run.places) == list(range(len(extents)))
    for run in runs:
        assert run.stop - run.start <= 8 << 20
        for place in run.places:
            assert run.shard == shards[place]
            assert run.start <= starts[place] < starts[place] + sizes[place] <= run.stop


def test_few_files_stay_open_and_close_closes_them(make_numbered: MakeNumbered) -> None:
    index = make_numbered(60, per_shard=5)
    reader = ShardReader(index, source=LocalFolder(index.directory, max_open=3))
    before = open_files_below(index.directory)
    for sample_id in np.random.default_rng(1).permutation(60).tolist():
        assert read_numbers(reader, [sample_id]) == [sample_id]
        assert open_files_below(index.directory) - before <= 3
    assert open_files_below(index.directory) - before == 3
    # A reader in use can be sent to another process.
    assert read_numbers(pickle.loads(pickle.dumps(reader)), [19, 3]) == [19, 3]
    reader.close()
    assert open_files_below(index.directory) == before
    assert read_numbers(reader, [17]) == [17]
