"""Ranks that are started again do not find what their predecessors have left in the store."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from msam_scale.fresh_store import fresh_store

_TIMEOUT = timedelta(seconds=60)


def _start(store: HashStore, *, size: int, late: int) -> list[bytes]:
    def join(rank: int) -> bytes:
        if rank == late:
            time.sleep(0.2)
        mine = fresh_store(store, rank=rank, size=size, timeout=_TIMEOUT)
        assert not mine.check([f"address of {rank}"]), "of an earlier start"
        mine.set(f"address of {rank}", f"{rank}")
        read: bytes = mine.get(f"address of {(rank + 1) % size}")
        return read

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(join, range(size)))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_every_start_has_a_part_of_its_own(late: int) -> None:
    store = HashStore()
    for _ in range(3):
        assert _start(store, size=3, late=late) == [b"1", b"2", b"0"]


def test_what_a_broken_start_has_left_is_not_taken_for_an_answer() -> None:
    store = HashStore()
    # Rank 1 has said hello, and ended before or after the answer.
    store.set("msam_scale/hello/1", "old")
    store.set("msam_scale/answer/old", "old name")
    assert _start(store, size=2, late=1) == [b"1", b"0"]


def test_a_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"timed out waiting for ranks \[1\] to join"):
        fresh_store(HashStore(), rank=0, size=2, timeout=timedelta(seconds=0.1))
