"""Reading by id: results by place, damage by name, few files open."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import read_numbers

from data_pipelines import SampleIndex, ShardReader, UserError
from data_pipelines.reading.runs import plan_runs
from data_pipelines.sources import LocalFolder

MakeNumbered = Callable[..., SampleIndex]


def open_files_below(directory: Path) -> int:
    links = list(Path("/proc/self/fd").iterdir())
    return sum(str(directory) in str(link.readlink()) for link in links if link.is_symlink())


def flip_bit(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


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
@settings(deadline=None)
def test_runs_cover_every_sample_once_and_stay_bounded(
    extents: list[tuple[int, int, int]],
) -> None:
    shards, starts, sizes = (np.array([e[i] for e in extents], np.int64) for i in range(3))
    runs = list(plan_runs(shards, starts=starts, stops=starts + sizes, max_gap_bytes=4096))
    assert sorted(place for run in runs for place in run.places) == list(range(len(extents)))
    for run in runs:
        assert run.stop - run.start <= 8 << 20
        for place in run.places:
            assert run.shard == shards[place]
            assert run.start <= starts[place] < starts[place] + sizes[place] <= run.stop


def test_flipped_bit_is_named(make_numbered: MakeNumbered) -> None:
    index = make_numbered(30)
    flip_bit(index.shard_path(1), int(index.samples[13]["npy.offset"]) + 130)
    reader = ShardReader(SampleIndex.open(index.directory))
    assert read_numbers(reader, [12, 14]) == [12, 14]
    with pytest.raises(UserError, match=r"part-000001.tar: sample 'sample13': damaged or not"):
        read_numbers(reader, [12, 13, 14])


def test_flipped_bit_of_a_label_is_named(make_numbered: MakeNumbered) -> None:
    index = make_numbered(30)
    flip_bit(index.shard_path(0), int(index.samples[4]["cls.offset"]))
    with pytest.raises(UserError, match=r"part-000000.tar: sample 'sample4': damaged"):
        read_numbers(ShardReader(index), [4])


def test_shard_replaced_by_one_of_equal_size_is_named(make_numbered: MakeNumbered) -> None:
    index = make_numbered(30)
    index.shard_path(1).write_bytes(index.shard_path(2).read_bytes())
    reader = ShardReader(SampleIndex.open(index.directory))
    with pytest.raises(UserError, match=r"part-000001.tar: sample 'sample10': damaged or not what"):
        read_numbers(reader, [10])


def test_shard_cut_short_while_in_use_is_named(make_numbered: MakeNumbered) -> None:
    index = make_numbered(30)
    os.truncate(index.shard_path(2), int(index.samples[25]["npy.offset"]) + 3)
    with pytest.raises(UserError, match=r"part-000002.tar: cut short: .*sample 'sample25'"):
        read_numbers(ShardReader(index), [25])
    assert read_numbers(ShardReader(index), [24]) == [24]


def test_shard_removed_while_in_use_is_named(make_numbered: MakeNumbered) -> None:
    index = make_numbered(30)
    index.shard_path(2).unlink()
    with pytest.raises(UserError, match=r"part-000002.tar: cannot be read: .*No such file"):
        read_numbers(ShardReader(index), [25])


def test_few_files_stay_open_and_close_closes_them(make_numbered: MakeNumbered) -> None:
    index = make_numbered(60, per_shard=5)
    reader = ShardReader(index, source=LocalFolder(index.directory, max_open=3))
    shuffled = np.random.default_rng(1).permutation(60).tolist()
    before = open_files_below(index.directory)
    for sample_id in shuffled:
        assert read_numbers(reader, [sample_id]) == [sample_id]
        assert open_files_below(index.directory) - before <= 3
    assert open_files_below(index.directory) - before == 3
    reader.close()
    assert open_files_below(index.directory) == before
    assert read_numbers(reader, [17]) == [17]


def test_reader_in_use_can_be_pickled(make_numbered: MakeNumbered) -> None:
    index = make_numbered(20)
    reader = ShardReader(index, source=LocalFolder(index.directory, max_open=1))
    assert read_numbers(reader, [3]) == [3]
    assert read_numbers(pickle.loads(pickle.dumps(reader)), [19, 3]) == [19, 3]
