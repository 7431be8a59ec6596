"""The layout of a mini-batch: every sample once, on as few ranks a micro-batch as will do."""

from __future__ import annotations

import re
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msam_scale.batch_plan import BatchPlan
from msam_scale.errors import UserError

numbers = st.integers(1, 24)


def _smallest_group(micro_batches: int, world_size: int, shard_group_size: int) -> int:
    return next(
        size
        for size in range(1, world_size + 1)
        if size % shard_group_size == 0
        and world_size % size == 0
        and micro_batches % (world_size // size) == 0
    )


@given(
    slice_size=st.integers(1, 4),
    micro_batches=numbers,
    num_shard_groups=st.integers(1, 6),
    shard_group_size=st.integers(1, 4),
)
def test_every_sample_is_worked_on_once(
    slice_size: int, micro_batches: int, num_shard_groups: int, shard_group_size: int
) -> None:
    world_size = num_shard_groups * shard_group_size
    group_size = _smallest_group(micro_batches, world_size, shard_group_size)
    batch_size = slice_size * micro_batches * group_size
    plan = BatchPlan(batch_size, micro_batches, world_size, shard_group_size)
    assert plan.group_size == group_size
    assert plan.groups * plan.group_size == world_size
    assert plan.groups * plan.sequential == micro_batches
    assert plan.slice_size == slice_size
    by_rank = [plan.positions(rank) for rank in range(world_size)]
    assert sorted(chain.from_iterable(by_rank)) == list(range(batch_size))
    assert {len(positions) for positions in by_rank} == {plan.samples_per_rank}
    groups_of: dict[int, set[int]] = {}
    for rank, positions in enumerate(by_rank):
        for place, position in enumerate(positions):
            micro_batch = position // plan.micro_batch_size
            groups_of.setdefault(micro_batch, set()).add(rank // group_size)
            # In the order of the turns.
            assert micro_batch == plan.micro_batch_of(rank, place // slice_size)
    assert all(len(groups) == 1 for groups in groups_of.values())


@given(world_size=numbers, micro_batches=numbers)
def test_sam_is_one_group_and_one_perturbation_a_rank_needs_none(
    world_size: int, micro_batches: int
) -> None:
    assert BatchPlan(world_size, 1, world_size).group_size == world_size
    each = BatchPlan(world_size, world_size, world_size)
    assert (each.group_size, each.sequential) == (1, 1)
    many = BatchPlan(world_size * micro_batches, world_size * micro_batches, world_size)
    assert (many.group_size, many.sequential) == (1, micro_batches)


@given(
    batch_size=st.integers(1, 100),
    micro_batches=numbers,
    world_size=st.integers(1, 12),
    shard_group_size=st.integers(1, 12),
)
def test_what_a_refusal_suggests_is_accepted(
    batch_size: int, micro_batches: int, world_size: int, shard_group_size: int
) -> None:
    try:
        BatchPlan(batch_size, micro_batches, world_size, shard_group_size)
    except UserError as error:
        message = str(error)
    else:
        return
    if world_size % shard_group_size:
        suggested = _numbers_after("sizes that divide them: ", message)
        assert suggested
        for size in suggested:
            assert world_size % size == 0
        return
    sizes = _numbers_after(f"sizes that {micro_batches} micro-batches can use: ", message)
    assert sizes
    for size in sizes:
        BatchPlan(size, micro_batches, world_size, shard_group_size)
    assert any(size < batch_size for size in sizes) or batch_size < min(sizes)
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    counts = _numbers_after(
        f"micro-batches that {batch_size} can be cut into on {ranks}: ", message
    )
    for count in counts:
        BatchPlan(batch_size, count, world_size, shard_group_size)
    if not counts:
        assert f"no number of micro-batches cuts {batch_size} samples evenly" in message
        for count in range(1, batch_size + 1):
            with pytest.raises(UserError):
                BatchPlan(batch_size, count, world_size, shard_group_size)


def _numbers_after(words: str, message: str) -> list[int]:
    found = re.search(re.escape(words) + r"([\d, ]+)", message)
    return [int(number) for number in found[1].split(", ")] if found else []


@pytest.mark.parametrize("name", ["batch_size", "micro_batches", "world_size", "shard_group_size"])
@pytest.mark.parametrize("value", [0, -2, 1.0, True, "4", None])
def test_what_is_no_count_is_refused(name: str, value: object) -> None:
    arguments: dict[str, object] = {"batch_size": 8, "micro_batches": 2, name: value}
    with pytest.raises(UserError, match=f"{name} is {value!r}"):
        BatchPlan(**arguments)  # type: ignore[arg-type]
