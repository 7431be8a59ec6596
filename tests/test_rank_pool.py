"""The pool of rank processes: failures are told, hangs are bounded, nothing is left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rank_pool import RankFailedError, RankPool


@pytest.fixture
def pool() -> Iterator[RankPool]:
    made = RankPool(2)
    yield made
    made.close()


def _sum_of_ranks() -> tuple[int, int]:
    total = torch.tensor(dist.get_rank() + 1)
    dist.all_reduce(total)
    return os.getpid(), int(total)


def _fails_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise KeyError("a mistake of this rank")
    dist.barrier()


def _sleeps_on(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(600)


def _leaves() -> None:
    os._exit(3)


def _lives(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def test_jobs_share_their_processes_until_one_fails(pool: RankPool) -> None:
    first, second = pool.run(_sum_of_ranks), pool.run(_sum_of_ranks)
    assert first == second
    assert [total for _, total in first] == [3, 3]
    processes = [process for process, _ in first]
    assert len({*processes, os.getpid()}) == 3
    with pytest.raises(RankFailedError, match=r"rank 1:(?s:.*)KeyError: 'a mistake of this rank'"):
        pool.run(_fails_on, 1)
    assert not any(map(_lives, processes))
    again = pool.run(_sum_of_ranks)
    assert [total for _, total in again] == [3, 3]
    assert not {process for process, _ in again} & set(processes)
    pool.close()
    assert not any(_lives(process) for process, _ in again)


def test_a_rank_that_hangs_or_leaves_is_told(pool: RankPool) -> None:
    begin = time.monotonic()
    with pytest.raises(RankFailedError, match=r"no answer from ranks \[0\] within 1 s: ended"):
        pool.run(_sleeps_on, 0, timeout=1.0)
    with pytest.raises(RankFailedError, match="the process ended"):
        pool.run(_leaves)
    assert time.monotonic() - begin < 30
