"""The sample orders and random streams: one to one, uniform, constant in time, pinned."""

import math
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipelines import GlobalOrder, SampleIndex, UserError, augmentation_rng, sample_order
from data_pipelines.order import LaneOrder, SampleOrder, WindowOrder
from data_pipelines.order.class_mixing import class_excess
from data_pipelines.order.mixing import derive_key
from data_pipelines.order.permutation import Permutation, permute_each
from data_pipelines.order.registry import default_num_lanes

MakeNumbered = Callable[..., SampleIndex]
Sizes = NDArray[np.int64]

seeds = st.integers(0, 2**63 - 1)
shard_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(np.array)


def whole_epoch(order: SampleOrder, num_samples: int, epoch: int = 0) -> NDArray[np.int64]:
    return order.sample_ids(epoch, start=0, stop=num_samples)


def shard_of(ids: NDArray[np.int64], sizes: Sizes) -> NDArray[np.int64]:
    return np.searchsorted(np.cumsum(sizes), ids, side="right")


def chi_square_excess(counts: NDArray[np.int64]) -> float:
    """By how many standard deviations chi-square of equal frequencies exceeds its mean."""
    expected = counts.sum() / counts.size
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.size - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@st.composite
def orders(draw: st.DrawFn) -> tuple[SampleOrder, int]:
    """Any order, and how many samples it has."""
    sizes, seed = draw(shard_sizes), draw(seeds)
    num_samples = int(sizes.sum())
    kind = draw(st.sampled_from(["global", "window", "lanes"]))
    if kind == "global":
        return GlobalOrder(seed=seed, num_samples=num_samples), num_samples
    shards = draw(st.integers(1, 15))
    if kind == "window":
        return WindowOrder(sizes, seed=seed, shards_per_window=shards), num_samples
    batch_size = draw(st.integers(1, num_samples))
    divisors = [lanes for lanes in range(1, batch_size + 1) if batch_size % lanes == 0]
    order = LaneOrder(
        sizes,
        seed=seed,
        batch_size=batch_size,
        num_lanes=draw(st.sampled_from(divisors)),
        shards_per_window=shards,
    )
    return order, num_samples


@given(made=orders(), epoch=st.integers(0, 10**6), data=st.data())
def test_every_sample_comes_once_an_epoch_in_any_parts(
    made: tuple[SampleOrder, int], epoch: int, data: st.DataObject
) -> None:
    order, num_samples = made
    ids = whole_epoch(order, num_samples, epoch)
    assert np.array_equal(np.sort(ids), np.arange(num_samples))
    start = data.draw(st.integers(0, num_samples))
    stop = data.draw(st.integers(start, num_samples))
    # Whatever was asked for meanwhile.
    order.sample_ids(epoch + 1, start=0, stop=1)
    assert np.array_equal(order.sample_ids(epoch, start=start, stop=stop), ids[start:stop])


def test_permutations_of_every_small_size_are_one_to_one() -> None:
    """Among them those that go through the network several times."""
    for size in range(1, 300):
        numbers = Permutation(size, key=size)(np.arange(size))
        assert np.array_equal(np.sort(numbers), np.arange(size))


def test_places_behind_the_lanes_come_once() -> None:
    """All ways to cut some samples into lanes, so that every remainder occurs."""
    sizes = np.array([5, 3, 4, 1])
    for batch_size in range(1, 14):
        for lanes in (lanes for lanes in range(1, 14) if batch_size % lanes == 0):
            order = LaneOrder(
                sizes, seed=1, batch_size=batch_size, num_lanes=lanes, shards_per_window=2
            )
            assert np.array_equal(np.sort(whole_epoch(order, 13)), np.arange(13))


def test_orders_are_pinned() -> None:
    """A published run must stay reproducible: if this fails, an order was changed."""
    first = whole_epoch(GlobalOrder(seed=0, num_samples=10), 10)
    assert first.tolist() == [9, 4, 6, 2, 8, 7, 0, 1, 3, 5]
    later = whole_epoch(GlobalOrder(seed=7, num_samples=11), 11, 5)
    assert later.tolist() == [2, 10, 6, 7, 8, 9, 0, 1, 5, 3, 4]
    large = GlobalOrder(seed=2**63 - 1, num_samples=1_281_167)
    ids = large.sample_ids(89, start=640_000, stop=640_004)
    assert ids.tolist() == [23500, 387431, 439508, 8547]
    sizes = np.array([5, 3, 4])
    window = WindowOrder(sizes, seed=7, shards_per_window=2)
    lanes = LaneOrder(sizes, seed=7, batch_size=4, num_lanes=2, shards_per_window=1)
    for order in (window, lanes):
        whole_epoch(order, 12, 0)  # what was asked before does not count
    assert whole_epoch(window, 12, 1).tolist() == [6, 5, 4, 7, 0, 2, 3, 1, 9, 11, 8, 10]
    assert whole_epoch(lanes, 12, 1).tolist() == [0, 2, 6, 7, 3, 4, 11, 10, 1, 5, 9, 8]
    many = LaneOrder(
        np.full(1282, 1000), seed=2**62, batch_size=4096, num_lanes=256, shards_per_window=2
    )
    assert many.sample_ids(89, start=640_000, stop=640_003).tolist() == [769701, 769846, 786225]


def test_augmentation_streams_are_pinned_and_depend_on_each_word_alone() -> None:
    def first(*words: int) -> int:
        return augmentation_rng(*words).bit_generator.random_raw()

    assert first(0, 0, 0) == 1866230997332862529
    assert first(1, 2, 3) == 8123536595133380112
    words = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)]
    streams = [first(*each) for each in words]
    assert len(set(streams)) == len(words)
    np.random.default_rng(5).random(100)
    assert [first(*each) for each in words] == streams


def test_epochs_and_seeds_have_unrelated_orders() -> None:
    made = [
        whole_epoch(GlobalOrder(seed=seed, num_samples=1000), 1000, epoch)
        for seed in range(4)
        for epoch in range(4)
    ]
    for i, one in enumerate(made):
        for other in made[:i]:
            # Of unrelated permutations about one place agrees, more than eight hardly ever.
            assert (one == other).sum() <= 8


@pytest.mark.part("data")
@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_permutations_of_few_samples_are_equally_frequent(size: int) -> None:
    draws = 40 * math.factorial(size)
    frequencies = Counter(
        tuple(Permutation(size, key=derive_key("test", key))(np.arange(size)).tolist())
        for key in range(draws)
    )
    assert len(frequencies) == math.factorial(size)
    assert chi_square_excess(np.array(list(frequencies.values()))) < 5


def place_excess(made: NDArray[np.int64]) -> float:
    size = made.shape[1]
    counts = [np.bincount(made[:, place], minlength=size) for place in range(size)]
    return chi_square_excess(np.array(counts))


def neighbour_excess(made: NDArray[np.int64]) -> float:
    size = made.shape[1]
    pairs = (made[:, :-1] * size + made[:, 1:]).ravel()
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
    return chi_square_excess(counts[~np.eye(size, dtype=bool)])


@pytest.mark.part("data")
def test_places_and_neighbours_are_uniform() -> None:
    order = GlobalOrder(seed=11, num_samples=37)
    made = np.stack([whole_epoch(order, 37, epoch) for epoch in range(500)])
    assert abs(place_excess(made)) < 5
    assert abs(neighbour_excess(made)) < 5
    # What these would catch: turning one fixed order leaves places uniform but not neighbours, and
    # an order that hardly changes is uniform in neither.
    turned = np.stack([np.roll(made[0], turn) for turn in range(500)])
    assert place_excess(turned) < 5
    assert neighbour_excess(turned) > 100
    assert place_excess(np.repeat(made[:20], 25, axis=0)) > 50


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


@pytest.mark.parametrize("shards_of_a_lane", [8, 9])
def test_a_rank_that_takes_whole_lanes_reads_its_own_shards(shards_of_a_lane: int) -> None:
    """One after the other, and where windows do not divide a lane its last one is short."""
    num_shards = 8 * shards_of_a_lane
    sizes = np.full(num_shards, 96)
    order = LaneOrder(sizes, seed=1, batch_size=64, num_lanes=8, shards_per_window=2)
    num_samples = int(sizes.sum())
    # (steps, lanes, samples of a lane in a step)
    steps = whole_epoch(order, num_samples).reshape(-1, 8, 8)
    shards = shard_of(steps.ravel(), sizes).reshape(steps.shape)
    of_lane = [set(shards[:, lane].ravel().tolist()) for lane in range(8)]
    assert all(len(of) == shards_of_a_lane for of in of_lane)
    assert len(set.union(*of_lane)) == num_shards
    for lane in range(8):
        # Two shards at a time: 24 steps of 8 samples.
        for start in range(0, 24 * (shards_of_a_lane // 2), 24):
            assert len(set(shards[start : start + 24, lane].ravel().tolist())) == 2


@given(
    sizes=st.lists(st.one_of(st.integers(1, 30), st.integers(1, 2**49)), min_size=1, max_size=20),
    data=st.data(),
)
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
    if kind == "global":
        return GlobalOrder(seed=0, num_samples=num_samples)
    if kind == "window":
        return WindowOrder(sizes, seed=0, shards_per_window=64)
    return LaneOrder(sizes, seed=0, batch_size=4096, num_lanes=256, shards_per_window=2)


def step_cost(order: SampleOrder, num_samples: int) -> tuple[float, int]:
    """Least seconds for one step's ids somewhere in an epoch, and the peak of memory."""
    seconds = []
    start = num_samples // 4096 // 2 * 4096
    order.sample_ids(3, start=start, stop=start + 4096)
    tracemalloc.start()
    ids = order.sample_ids(3, start=start, stop=start + 4096)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(ids)) == 4096
    for _ in range(5):
        begin = time.process_time()
        order.sample_ids(3, start=start, stop=start + 4096)
        seconds.append(time.process_time() - begin)
    return min(seconds), peak


@pytest.mark.parametrize("kind", ["global", "window", "lanes"])
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


def test_what_cannot_be_an_order_is_named(make_numbered: MakeNumbered) -> None:
    index = make_numbered(20)
    for order, message in (
        ("globl", r"unknown order 'globl': did you mean 'global'"),
        ("global:shards=2", r"order: global has no parameter shards, none"),
        ("window:lanes=2", r"order: window has no parameter lanes, only shards"),
        ("window:shards=0", r"window:shards=0, but 1 or more"),
        ("window:shards=two", r"'shards=two' is not a parameter; written as in lanes:lanes=256"),
        ("lanes:shards=2,shards=3", r"'shards=3' is not a parameter"),
        ("lanes:lanes=5", r"lanes=5,shards=2: .* 5 lanes do not divide the batch size 6"),
        ("lanes:lanes=0", r"0 lanes do not divide"),
        ("lanes:lanes=2,shards=0", r"shards=0, but 1 or more shards"),
    ):
        with pytest.raises(UserError, match=message):
            sample_order(order, index=index, seed=0, batch_size=6)
    with pytest.raises(UserError, match=r"seed: -1 is not in"):
        GlobalOrder(seed=-1, num_samples=3)
    with pytest.raises(UserError, match=r"seed: 9223372036854775808"):
        augmentation_rng(2**63, 0, 0)


def by_thirties(number: int) -> int:
    return number // 30


def drawn(number: int) -> int:
    return int(np.random.default_rng(number).integers(7))


def test_shards_sorted_by_class_are_refused(make_numbered: MakeNumbered) -> None:
    sorted_classes = make_numbered(210, label_of=by_thirties)
    shuffled = make_numbered(210, label_of=drawn, name="shuffled")
    for order in ("window", "lanes"):
        with pytest.raises(UserError, match=r"holds its samples sorted by class \(9\d% of the way"):
            sample_order(order, index=sorted_classes, seed=0, batch_size=6)
        sample_order(order, index=shuffled, seed=0, batch_size=6)
    sample_order("global", index=sorted_classes, seed=0, batch_size=6)
    for same in (5, 1):
        assert class_excess(np.zeros(same, np.int32))[0] == 0
