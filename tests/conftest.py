"""What all tests share: one thread a process, pools of rank processes, long parts left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import durations
import hypothesis
import pytest
import torch
from filelock import FileLock
from finished_run import finished_run as finished_run
from rank_pool import OnRanks, RankPool
from report import found_here, tables, take_over
from scheduling import RanksInOneProcess

from data_pipelines import prepare
from tests.parts import PARTS

# No test asks a hub: Hugging Face's libraries wait long for one that cannot be reached.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# One thread a process, also in ranks and commands, unless whoever starts the tests says otherwise.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
# Two test processes and their ranks share the cores: how long an example takes says nothing.
hypothesis.settings.register_profile("suite", deadline=None, max_examples=25)
hypothesis.settings.register_profile("examples", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
durations.watch_commands()
_totals = durations.Totals()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--part NAME`: the long tests of one part, which are left out otherwise."""
    parser.addoption("--part", help="run the long tests marked with this part, and only them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests of the part that is asked for; without one, those of none."""
    wanted = config.getoption("--part")
    chosen, others = [], []
    for item in items:
        marker = item.get_closest_marker("part")
        part = None if marker is None else marker.args[0]
        if part is not None and part not in PARTS:
            raise pytest.UsageError(f"{item.nodeid}: tests/parts.py has no part {part!r}")
        (chosen if part == wanted else others).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=others)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RanksInOneProcess:
    """Says which process runs which file."""
    return RanksInOneProcess(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measures what a test spends its time on."""
    with durations.measured() as seconds:
        result = yield
    _totals.add(item.nodeid, seconds)
    return result


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
        output["seconds"] = [dict(_totals.by_kind), dict(_totals.by_file)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes what a worker process has found out; one that died has found nothing."""
    output = getattr(node, "workeroutput", {})
    take_over(output.get("tables", {}))
    _totals.take_over(*output.get("seconds", ({}, {})))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what the tests have measured."""
    for line in [*tables(), *_totals.lines()]:
        terminalreporter.write_line(line)
