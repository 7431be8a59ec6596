"""What all tests share: one thread a process, and pools of rank processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from filelock import FileLock
from rank_pool import OnRanks, RankPool
from report import found_here, tables, take_over

from data_pipelines import prepare

torch.set_num_threads(1)
# Commands that tests start, too, unless the machine is theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Two test processes and their ranks share the cores: how long an example takes says nothing.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


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


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the prepared digits; nobody writes there."""
    return prepare("digits", out=tmp_path_factory.mktemp("data") / "digits").directory


@pytest.fixture
def fixed_ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For commands that take torchrun's and the deepspeed launcher's own port: one at a time."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "fixed_ports.lock"):
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands what a worker process has found out to the process that prints it."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["tables"] = found_here()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes what a worker process has found out; one that died has found nothing."""
    take_over(getattr(node, "workeroutput", {}).get("tables", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what the tests have measured."""
    for line in tables():
        terminalreporter.write_line(line)
