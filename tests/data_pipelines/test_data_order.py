"""The sample order and the random streams: one to one, uniform, constant in time, pinned."""

import math
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipelines import GlobalOrder, UserError, augmentation_rng
from data_pipelines.order.mixing import derive_key
from data_pipelines.order.permutation import Permutation


def whole_epoch(order: GlobalOrder, epoch: int) -> NDArray[np.int64]:
    return order.sample_ids(epoch, start=0, stop=order.num_samples)


def chi_square_excess(counts: NDArray[np.int64]) -> float:
    """By how many standard deviations chi-square of equal frequencies exceeds its mean."""
    expected = counts.sum() / counts.size
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.size - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@given(
    num_samples=st.one_of(st.sampled_from([1, 2, 3, 4, 5, 7, 97, 1009]), st.integers(1, 3000)),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=60)
def test_every_sample_comes_once_an_epoch(num_samples: int, seed: int, epoch: int) -> None:
    ids = whole_epoch(GlobalOrder(seed=seed, num_samples=num_samples), epoch)
    assert np.array_equal(np.sort(ids), np.arange(num_samples))


@given(num_samples=st.integers(1, 500), data=st.data())
@settings(deadline=None, max_examples=30)
def test_a_part_of_an_epoch_equals_that_part_of_the_whole(
    num_samples: int, data: st.DataObject
) -> None:
    order = GlobalOrder(seed=3, num_samples=num_samples)
    start = data.draw(st.integers(0, num_samples))
    stop = data.draw(st.integers(start, num_samples))
    part = order.sample_ids(1, start=start, stop=stop)
    assert np.array_equal(part, whole_epoch(order, 1)[start:stop])


def test_order_is_pinned() -> None:
    """A published run must stay reproducible: if this fails, the order was changed."""
    assert whole_epoch(GlobalOrder(seed=0, num_samples=10), 0).tolist() == [
        9,
        4,
        6,
        2,
        8,
        7,
        0,
        1,
        3,
        5,
    ]
    assert whole_epoch(GlobalOrder(seed=7, num_samples=11), 5).tolist() == [
        2,
        10,
        6,
        7,
        8,
        9,
        0,
        1,
        5,
        3,
        4,
    ]
    large = GlobalOrder(seed=2**63 - 1, num_samples=1_281_167)
    assert large.sample_ids(89, start=640_000, stop=640_004).tolist() == [
        23500,
        387431,
        439508,
        8547,
    ]


def test_augmentation_streams_are_pinned() -> None:
    assert augmentation_rng(0, 0, 0).bit_generator.random_raw(2).tolist() == [
        1866230997332862529,
        18013455045776225452,
    ]
    assert augmentation_rng(1, 2, 3).bit_generator.random_raw(2).tolist() == [
        8123536595133380112,
        2323486323095227264,
    ]


def test_augmentation_stream_depends_on_each_of_its_words_and_on_nothing_else() -> None:
    words = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)]
    first = [augmentation_rng(*each).bit_generator.random_raw() for each in words]
    assert len(set(first)) == len(words)
    np.random.default_rng(5).random(100)
    assert [augmentation_rng(*each).bit_generator.random_raw() for each in words] == first


def test_epochs_and_seeds_have_unrelated_orders() -> None:
    orders = [
        whole_epoch(GlobalOrder(seed=seed, num_samples=1000), epoch)
        for seed in range(4)
        for epoch in range(4)
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Of unrelated permutations about one place agrees, more than eight hardly ever.
            assert (one == other).sum() <= 8


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_permutations_of_few_samples_are_equally_frequent(size: int) -> None:
    draws = 60 * math.factorial(size)
    frequencies = Counter(
        tuple(Permutation(size, key=derive_key("test", key))(np.arange(size)).tolist())
        for key in range(draws)
    )
    assert len(frequencies) == math.factorial(size)
    assert chi_square_excess(np.array(list(frequencies.values()))) < 5


def place_excess(orders: NDArray[np.int64]) -> float:
    size = orders.shape[1]
    counts = [np.bincount(orders[:, place], minlength=size) for place in range(size)]
    return chi_square_excess(np.array(counts))


def neighbour_excess(orders: NDArray[np.int64]) -> float:
    size = orders.shape[1]
    pairs = (orders[:, :-1] * size + orders[:, 1:]).ravel()
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
    return chi_square_excess(counts[~np.eye(size, dtype=bool)])


@pytest.mark.parametrize("size", [37, 64])
def test_places_and_neighbours_are_uniform(size: int) -> None:
    order = GlobalOrder(seed=11, num_samples=size)
    orders = np.stack([whole_epoch(order, epoch) for epoch in range(2000)])
    assert abs(place_excess(orders)) < 5
    assert abs(neighbour_excess(orders)) < 5
    # What these would catch: turning one fixed order leaves places uniform but not neighbours, and
    # an order that hardly changes is uniform in neither.
    turned = np.stack([np.roll(orders[0], turn) for turn in range(2000)])
    assert place_excess(turned) < 5
    assert neighbour_excess(turned) > 100
    assert place_excess(np.repeat(orders[:20], 100, axis=0)) > 100


def test_seeking_in_a_hundred_million_samples_costs_what_it_returns() -> None:
    order = GlobalOrder(seed=0, num_samples=100_000_000)
    tracemalloc.start()
    begin = time.perf_counter()
    ids = order.sample_ids(3, start=99_000_000, stop=99_004_096)
    seconds = time.perf_counter() - begin
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(ids)) == 4096
    assert 0 <= ids.min() < ids.max() < 100_000_000
    # All ids would be 800 MB and take seconds.
    assert peak < 2_000_000
    assert seconds < 0.5


def test_seed_out_of_range_is_named() -> None:
    with pytest.raises(UserError, match=r"seed: -1 is not in"):
        GlobalOrder(seed=-1, num_samples=3)
    with pytest.raises(UserError, match=r"seed: 9223372036854775808"):
        augmentation_rng(2**63, 0, 0)
