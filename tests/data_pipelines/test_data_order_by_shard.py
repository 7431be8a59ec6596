"""The orders `window` and `lanes`: one to one, pinned, and reading from few shards at a time."""

import math
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipelines import SampleIndex, UserError, sample_order
from data_pipelines.order import LaneOrder, SampleOrder, WindowOrder
from data_pipelines.order.class_mixing import class_excess
from data_pipelines.order.permutation import Permutation, permute_each
from data_pipelines.order.registry import default_num_lanes

MakeNumbered = Callable[..., SampleIndex]
PINNED_WINDOW = [6, 5, 4, 7, 0, 2, 3, 1, 9, 11, 8, 10]
PINNED_LANES = [0, 2, 6, 7, 3, 4, 11, 10, 1, 5, 9, 8]
PINNED_LARGE = [769701, 769846, 786225]

shard_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(np.array)


def whole_epoch(order: SampleOrder, num_samples: int, epoch: int = 0) -> NDArray[np.int64]:
    return order.sample_ids(epoch, start=0, stop=num_samples)


def shard_of(ids: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.searchsorted(np.cumsum(sizes), ids, side="right")


@st.composite
def lane_orders(draw: st.DrawFn) -> tuple[LaneOrder, NDArray[np.int64], int]:
    sizes = draw(shard_sizes)
    batch_size = draw(st.integers(1, int(sizes.sum())))
    divisors = [lanes for lanes in range(1, batch_size + 1) if batch_size % lanes == 0]
    order = LaneOrder(
        sizes,
        seed=draw(st.integers(0, 2**63 - 1)),
        batch_size=batch_size,
        num_lanes=draw(st.sampled_from(divisors)),
        shards_per_window=draw(st.integers(1, 5)),
    )
    return order, sizes, batch_size


@given(sizes=shard_sizes, shards=st.integers(1, 15), seed=st.integers(0, 2**63 - 1), data=st.data())
@settings(deadline=None, max_examples=60)
def test_window_has_every_sample_once_in_any_parts(
    sizes: NDArray[np.int64], shards: int, seed: int, data: st.DataObject
) -> None:
    order = WindowOrder(sizes, seed=seed, shards_per_window=shards)
    num_samples = int(sizes.sum())
    ids = whole_epoch(order, num_samples)
    assert np.array_equal(np.sort(ids), np.arange(num_samples))
    start = data.draw(st.integers(0, num_samples))
    stop = data.draw(st.integers(start, num_samples))
    assert np.array_equal(order.sample_ids(0, start=start, stop=stop), ids[start:stop])


@given(made=lane_orders(), epoch=st.integers(0, 100), data=st.data())
@settings(deadline=None, max_examples=80)
def test_lanes_have_every_sample_once_in_any_parts(
    made: tuple[LaneOrder, NDArray[np.int64], int], epoch: int, data: st.DataObject
) -> None:
    order, sizes, batch_size = made
    num_samples = int(sizes.sum())
    ids = whole_epoch(order, num_samples, epoch)
    assert np.array_equal(np.sort(ids), np.arange(num_samples))
    step = data.draw(st.integers(0, num_samples // batch_size - 1))
    places = slice(step * batch_size, (step + 1) * batch_size)
    mini_batch = order.sample_ids(epoch, start=places.start, stop=places.stop)
    assert np.array_equal(mini_batch, ids[places])


def test_orders_by_shard_are_pinned() -> None:
    """A published run must stay reproducible: if this fails, the order was changed."""
    sizes = np.array([5, 3, 4])
    window = WindowOrder(sizes, seed=7, shards_per_window=2)
    assert whole_epoch(window, 12, 1).tolist() == PINNED_WINDOW
    lanes = LaneOrder(sizes, seed=7, batch_size=4, num_lanes=2, shards_per_window=1)
    assert whole_epoch(lanes, 12, 1).tolist() == PINNED_LANES
    large = LaneOrder(
        np.full(1282, 1000), seed=2**62, batch_size=4096, num_lanes=256, shards_per_window=2
    )
    assert large.sample_ids(89, start=640_000, stop=640_003).tolist() == PINNED_LARGE


def test_a_window_reads_from_its_shards_only_and_mixes_them() -> None:
    sizes = np.full(64, 100)
    order = WindowOrder(sizes, seed=1, shards_per_window=8)
    shards = shard_of(whole_epoch(order, 6400), sizes).reshape(8, 800)
    for window in shards:
        assert len(set(window.tolist())) == 8
        # 100 samples of each of 8 shards; shuffled, any 200 have about 25 of each.
        counts = np.bincount(window[:200], minlength=64)
        assert counts[counts > 0].min() > 8
    # The shards of a window are others each epoch.
    other = shard_of(whole_epoch(order, 6400, 1), sizes).reshape(8, 800)
    assert set(shards[0].tolist()) != set(other[0].tolist())


def test_a_rank_that_takes_whole_lanes_reads_its_own_shards_one_after_the_other() -> None:
    sizes = np.full(64, 100)
    order = LaneOrder(sizes, seed=1, batch_size=64, num_lanes=8, shards_per_window=2)
    steps = whole_epoch(order, 6400).reshape(100, 8, 8)  # steps, lanes, samples of a lane
    shards = shard_of(steps.ravel(), sizes).reshape(steps.shape)
    of_lane = [set(shards[:, lane].ravel().tolist()) for lane in range(8)]
    assert all(len(of) == 8 for of in of_lane)
    assert len(set.union(*of_lane)) == 64
    for lane in range(8):
        # Two shards at a time: 25 steps of 8 samples.
        for start in range(0, 100, 25):
            assert len(set(shards[start : start + 25, lane].ravel().tolist())) == 2


@pytest.mark.parametrize("shards", [1, 2])
def test_windows_are_uniformly_permuted(shards: int) -> None:
    sizes = np.array([2, 2])
    orders = Counter(
        tuple(whole_epoch(WindowOrder(sizes, seed=seed, shards_per_window=shards), 4).tolist())
        for seed in range(960)
    )
    # Shards in any order and pairs turned or not, or everything in any order.
    expected = 2 * 2**2 if shards == 1 else math.factorial(4)
    counts = np.array(list(orders.values()))
    assert len(counts) == expected
    mean = counts.sum() / expected
    excess = ((counts - mean) ** 2 / mean).sum() - (expected - 1)
    assert abs(excess) < 5 * math.sqrt(2 * (expected - 1))


@given(
    sizes=st.lists(st.one_of(st.integers(1, 30), st.integers(1, 2**49)), min_size=1, max_size=20),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_many_permutations_at_once_are_the_single_ones(
    sizes: list[int], data: st.DataObject
) -> None:
    places = [data.draw(st.integers(0, size - 1)) for size in sizes]
    keys = [data.draw(st.integers(0, 2**64 - 1)) for _ in sizes]
    together = permute_each(
        np.array(places), sizes=np.array(sizes), keys=np.array(keys, dtype=np.uint64)
    )
    single = [
        int(Permutation(size, key=key)(np.array([place]))[0])
        for place, size, key in zip(places, sizes, keys, strict=True)
    ]
    assert together.tolist() == single


def make_order(kind: str, num_samples: int) -> SampleOrder:
    sizes = np.full(num_samples // 1000, 1000)
    if kind == "window":
        return WindowOrder(sizes, seed=0, shards_per_window=64)
    return LaneOrder(sizes, seed=0, batch_size=4096, num_lanes=256, shards_per_window=2)


def step_cost(order: SampleOrder, num_samples: int) -> tuple[float, int]:
    """Least seconds for one step's ids somewhere in an epoch, and the peak of memory."""
    seconds = []
    start = num_samples // 4096 // 2 * 4096
    order.sample_ids(3, start=start, stop=start + 4096)
    tracemalloc.start()
    order.sample_ids(3, start=start, stop=start + 4096)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for _ in range(7):
        begin = time.process_time()
        order.sample_ids(3, start=start, stop=start + 4096)
        seconds.append(time.process_time() - begin)
    return min(seconds), peak


@pytest.mark.parametrize("kind", ["window", "lanes"])
def test_a_step_of_a_hundred_million_samples_costs_what_one_of_a_million_does(kind: str) -> None:
    small = step_cost(make_order(kind, 1_000_000), 1_000_000)
    large = step_cost(make_order(kind, 100_000_000), 100_000_000)
    # Ten times would be far less than the hundred times of an order that walks through the epoch.
    assert large[0] < 10 * small[0]
    assert large[1] < 2 * small[1] < 10_000_000


def test_orders_by_name(make_numbered: MakeNumbered) -> None:
    index = make_numbered(51)
    window = sample_order("window:shards=2", index=index, seed=3, batch_size=6)
    assert window.identity == "window:shards=2"
    expected = WindowOrder(index.shard_sizes, seed=3, shards_per_window=2)
    assert np.array_equal(whole_epoch(window, 51), whole_epoch(expected, 51))
    lanes = sample_order("lanes", index=index, seed=3, batch_size=6)
    assert lanes.identity == "lanes:lanes=6,shards=2"
    assert sample_order("global", index=index, seed=3, batch_size=6).identity == "global"
    for order in (window, lanes):
        again = sample_order(order.identity, index=index, seed=3, batch_size=6)
        assert np.array_equal(whole_epoch(again, 51), whole_epoch(order, 51))
    assert [default_num_lanes(size) for size in (1, 96, 4096, 514, 521)] == [1, 96, 256, 2, 1]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("globl", r"unknown order 'globl': did you mean 'global'"),
        ("global:shards=2", r"order: global has no parameter shards, none"),
        ("window:lanes=2", r"order: window has no parameter lanes, only shards"),
        ("window:shards=0", r"window:shards=0, but 1 or more"),
        ("window:shards=two", r"'shards=two' is not a parameter; written as in lanes:lanes=256"),
        ("lanes:shards=2,shards=3", r"'shards=3' is not a parameter"),
        ("lanes:lanes=5", r"lanes=5,shards=2: .* 5 lanes do not divide the batch size 6"),
        ("lanes:lanes=0", r"0 lanes do not divide"),
        ("lanes:lanes=2,shards=0", r"shards=0, but 1 or more shards"),
    ],
)
def test_impossible_orders_are_named(make_numbered: MakeNumbered, order: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample_order(order, index=make_numbered(20), seed=0, batch_size=6)


@pytest.mark.parametrize("order", ["window", "lanes"])
def test_shards_sorted_by_class_are_refused(make_numbered: MakeNumbered, order: str) -> None:
    sorted_classes = make_numbered(210, label_of=lambda number: number // 30)
    with pytest.raises(UserError, match=r"holds its samples sorted by class \(9\d% of the way"):
        sample_order(order, index=sorted_classes, seed=0, batch_size=6)
    sample_order("global", index=sorted_classes, seed=0, batch_size=6)
    shuffled = make_numbered(
        210,
        label_of=lambda number: int(np.random.default_rng(number).integers(7)),
        name="shuffled",
    )
    sample_order(order, index=shuffled, seed=0, batch_size=6)


def test_how_sorted_labels_are() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 20_000).astype(np.int32)
    assert abs(class_excess(labels)[0]) < 0.02
    assert class_excess(np.sort(labels))[0] > 0.99
    assert class_excess(np.zeros(5, np.int32))[0] == 0
    assert class_excess(np.zeros(1, np.int32))[0] == 0
