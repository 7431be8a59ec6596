"""What all tests share: one thread a process, and pools of rank processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rank_pool import OnRanks, RankPool
from report import tables

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pools() -> Iterator[dict[int, RankPool]]:
    """The pools by number of ranks; their processes start with the first job."""
    made = {size: RankPool(size) for size in (2, 4)}
    yield made
    for pool in made.values():
        pool.close()


@pytest.fixture
def on_ranks(pools: dict[int, RankPool]) -> OnRanks:
    """`on_ranks(W, function, *arguments)`: what each of W ranks returns; W = 1 is this process."""

    def run(size: int, function: Callable[..., Any], *arguments: Any, **named: Any) -> list[Any]:
        if size == 1:
            return [function(*arguments, **named)]
        return pools[size].run(function, *arguments, **named)

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what the tests have measured."""
    for line in tables():
        terminalreporter.write_line(line)
