"""Saving and going on: what may change between two runs and what may not."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from shards import damage_sample

from data_pipelines import MicroBatchLoader, SampleIndex, UserError, transform_preset
from data_pipelines.reading import BadDataPolicy

MakeNumbered = Callable[..., SampleIndex]
WHOLE: Sequence[Sequence[int]] = [range(8)]


def make_loader(index: SampleIndex, **changes: Any) -> MicroBatchLoader:
    settings: dict[str, Any] = {
        "order": "global",
        "seed": 5,
        "batch_size": 8,
        "positions": WHOLE,
        "transform": transform_preset("none"),
        "num_workers": 0,
        "first_step": 0,
        "num_steps": 15,
        "micro_batches": 2 if changes.get("positions") else 1,
        **changes,
    }
    return MicroBatchLoader(index, **settings)


def images_of(batches: MicroBatchLoader) -> torch.Tensor:
    return torch.cat([images for images, _ in batches])


def state_after(batches: MicroBatchLoader, num_items: int) -> dict[str, Any]:
    iterator = iter(batches)
    for _ in range(num_items):
        next(iterator)
    # A checkpoint keeps it as text.
    state: dict[str, Any] = json.loads(json.dumps(batches.state_dict()))
    return state


@pytest.mark.layouts
@pytest.mark.parametrize("order", ["global", "window:shards=2", "lanes:lanes=2,shards=1"])
def test_going_on_gives_the_rest(make_numbered: MakeNumbered, order: str) -> None:
    index = make_numbered(51)
    images = [each.clone() for each, _ in make_loader(index, order=order)]
    for steps in (0, 1, 5, 6, 11, 15):
        state = state_after(make_loader(index, order=order), steps)
        assert (state["epoch"], state["step"]) == (steps // 6, steps)
        later = make_loader(index, order=order)
        later.load_state_dict(state)
        found = [each.clone() for each, _ in later]
        assert len(found) == len(later) == 15 - steps
        assert all(torch.equal(a, b) for a, b in zip(found, images[steps:], strict=True))
        # What was loaded is what the loader says, however much it has yielded.
        later.load_state_dict(state)
        assert later.state_dict() == state
        if steps < 14:  # and so does a second stop
            again = make_loader(index, order=order)
            again.load_state_dict(state_after(later, 1))
            assert torch.equal(images_of(again), torch.cat(images[steps + 1 :]))


def test_a_step_is_done_when_all_its_items_were_yielded(make_numbered: MakeNumbered) -> None:
    batches = make_loader(make_numbered(51), positions=[range(4), range(4, 8)])
    assert [state_after(batches, items)["step"] for items in (0, 1, 2, 3, 4)] == [0, 0, 1, 1, 2]
    assert batches.state_dict(steps_done=9)["step"] == 9


def test_layout_workers_and_memory_may_change(make_numbered: MakeNumbered) -> None:
    index = make_numbered(51)
    state = state_after(make_loader(index, micro_batches=2, positions=[range(4)]), 4)
    later = make_loader(
        index,
        micro_batches=2,
        positions=[[1, 0], [2, 3], [4, 5, 6, 7]],
        num_workers=1,
        max_host_bytes=1 << 22,
    )
    later.load_state_dict(state)
    assert len(list(later)) == 3 * 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, r"saved with seed 5, but this loader has 6; use the same seed"),
        ({"batch_size": 16}, r"saved within epoch 0, with batch_size 8 before and 16 now"),
        ({"micro_batches": 2, "positions": [range(4)]}, r"micro_batches 1 before and 2 now"),
        ({"order": "window"}, r"order global before and window:shards=64 now"),
        ({"num_steps": 2}, r"4 steps are done, but this loader ends after 2"),
    ],
)
def test_what_would_lose_samples_is_refused(
    make_numbered: MakeNumbered, changes: dict[str, Any], message: str
) -> None:
    index = make_numbered(51)
    with pytest.raises(UserError, match=message):
        make_loader(index, **changes).load_state_dict(state_after(make_loader(index), 4))


def test_batch_size_may_change_at_the_end_of_an_epoch(make_numbered: MakeNumbered) -> None:
    index = make_numbered(51)
    state = state_after(make_loader(index), 12)  # two epochs of six
    later = make_loader(index, batch_size=16)
    later.load_state_dict(state)
    assert later.state_dict()["step"] == 6  # two epochs of three
    fresh = make_loader(index, batch_size=16, first_step=6, num_steps=9)
    assert torch.equal(images_of(later), images_of(fresh))


def test_micro_batches_may_change_when_that_is_wanted(make_numbered: MakeNumbered) -> None:
    index = make_numbered(51)
    later = make_loader(index, micro_batches=2, positions=[range(4)])
    later.load_state_dict(state_after(make_loader(index), 4), allows_new_partition=True)
    assert later.state_dict()["step"] == 4


def test_other_data_and_damaged_states_are_named(make_numbered: MakeNumbered) -> None:
    index = make_numbered(51)
    state = state_after(make_loader(index), 4)
    other = make_loader(make_numbered(52, name="other"))
    with pytest.raises(UserError, match=r"saved with fingerprint [0-9a-f]{64}, but"):
        other.load_state_dict(state)
    changes: dict[str, tuple[Any, str]] = {
        "version": (2, r"version 2 is not known, only 1"),
        "step": ("4", r"loader state: step: "),
        "extra": (1, r"loader state: extra: "),
        "next_samples": ([0] * 8, r"the samples after step 4 are not those of the program"),
    }
    for key, (value, message) in changes.items():
        with pytest.raises(UserError, match=message):
            make_loader(index).load_state_dict({**state, key: value})


def test_going_on_in_the_middle_costs_no_more_than_at_the_start(
    make_numbered: MakeNumbered,
) -> None:
    index = make_numbered(51)

    def seconds(step: int) -> float:
        begin = time.process_time()
        batches = make_loader(index, num_steps=10**9)
        batches.load_state_dict(batches.state_dict(steps_done=step))
        next(iter(batches))
        return time.process_time() - begin

    early = min(seconds(1) for _ in range(5))
    late = min(seconds(500_000_000) for _ in range(5))
    assert late < 10 * early


@pytest.mark.parametrize("num_workers", [0, 2])
def test_replaced_samples_are_listed_and_kept(
    make_numbered: MakeNumbered, num_workers: int
) -> None:
    index = make_numbered(51)
    for number in (13, 14, 40):
        damage_sample(index, number)
    policy = BadDataPolicy("substitute", seed=3, max_fraction=0.1)

    def loader(**changes: Any) -> MicroBatchLoader:
        return make_loader(index, on_error=policy, num_steps=12, **changes)

    whole = loader(num_workers=num_workers)
    images = images_of(whole)
    assert not {13, 14, 40} & set(images[:, 0, 0, 0].tolist())
    state: dict[str, Any] = json.loads(json.dumps(whole.state_dict()))
    assert [bad["sample_id"] for bad in state["bad_samples"]] == [13, 14, 40]
    assert "'sample13'" in state["bad_samples"][0]["where"]
    # What stands in does not depend on the layout or on what was met before.
    halves = loader(micro_batches=2, positions=[range(4), range(4, 8)])
    assert torch.equal(images_of(halves), images)
    later = loader()
    later.load_state_dict({**state, **later.state_dict(steps_done=6), "bad_samples": []})
    assert torch.equal(images_of(later), images[48:])
    # The list counts against the limit where a run goes on.
    strict = make_loader(index, on_error=BadDataPolicy("substitute", max_fraction=0.04))
    with pytest.raises(UserError, match=r"more than 2 of 51 samples are damaged"):
        strict.load_state_dict(state)
