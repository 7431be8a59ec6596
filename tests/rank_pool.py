"""Rank processes that live for a whole test session, each in a real `gloo` process group.

Starting a process and importing torch takes seconds, a job takes milliseconds: so the processes are
started once, when a test first needs them, and every test sends them jobs.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import durations
import torch
import torch.distributed as dist

# After one rank has failed the others may wait for it in a collective for ever.
_SECONDS_AFTER_A_FAILURE = 3.0
_SECONDS_TO_LEAVE = 5.0


OnRanks = Callable[..., list[Any]]
"""The fixture `on_ranks`: `on_ranks(W, function, *arguments)`."""


class RankFailedError(AssertionError):
    """A rank raised, ended or did not answer; the message holds what is known, rank by rank."""


class RankPool:
    """`size` processes that run the same function at the same time.

    A failure ends all of them, since nothing can be said about a group one of whose ranks has left
    a collective; the next job starts new ones.

    Args:
        size: W, ranks.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(
        self, function: Callable[..., Any], *arguments: Any, timeout: float = 300.0, **named: Any
    ) -> list[Any]:
        """Calls `function(*arguments, **named)` on every rank.

        Args:
            function: of a module, so that the processes can import it.
            arguments: positional arguments, copied to each process.
            timeout: seconds after which the processes are ended.
            named: keyword arguments, copied to each process.

        Returns:
            What each rank returned, by rank.

        Raises:
            RankFailedError: a rank raised, ended, or gave no answer in time.
        """
        if not self._processes:
            self._start()
        job = pickle.dumps((function, arguments, named))
        for connection in self._connections:
            connection.send_bytes(job)
        with durations.working(durations.ZERO3 if _is_zero3(job) else durations.RANKS):
            answers = self._answers(time.monotonic() + timeout)
        failures = [f"rank {rank}:\n{text}" for rank, (good, text) in answers.items() if not good]
        silent = sorted(set(range(self.size)) - answers.keys())
        if failures or silent:
            self.close(patient=False)
            if silent:
                failures.append(f"no answer from ranks {silent} within {timeout:g} s: ended")
            raise RankFailedError("\n\n".join([f"{function.__qualname__} failed", *failures]))
        return [answers[rank][1] for rank in range(self.size)]

    def close(self, *, patient: bool = True) -> None:
        """Ends the processes; `patient` lets them leave their group first."""
        for connection in self._connections:
            if patient:
                connection.send_bytes(pickle.dumps(None))
            connection.close()
        for process in self._processes:
            process.join(_SECONDS_TO_LEAVE if patient else 0.0)
            if process.is_alive():
                process.kill()
                process.join()
        if self._folder is not None:
            self._folder.cleanup()
        self._connections, self._processes, self._folder = [], [], None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ranks")
        store = Path(self._folder.name) / "store"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "timm", "msam_scale.initialization"])
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self.size, str(store), there), daemon=True
            )
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)

    def _answers(self, deadline: float) -> dict[int, tuple[bool, Any]]:
        answers: dict[int, tuple[bool, Any]] = {}
        waiting = dict(zip(self._connections, range(self.size), strict=True))
        while waiting and (left := deadline - time.monotonic()) > 0:
            for connection in wait(list(waiting), left):
                assert isinstance(connection, Connection)
                rank = waiting.pop(connection)
                try:
                    answers[rank] = pickle.loads(connection.recv_bytes())
                except EOFError:
                    answers[rank] = False, "the process ended"
                if not answers[rank][0]:
                    deadline = min(deadline, time.monotonic() + _SECONDS_AFTER_A_FAILURE)
        return answers


def _serve(rank: int, size: int, store: str, connection: Connection) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # As pyproject.toml asks of pytest.
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", PendingDeprecationWarning)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    while (job := _received(connection)) is not None:
        function, arguments, named = job
        try:
            answer = True, function(*arguments, **named)
        except BaseException:
            answer = False, traceback.format_exc()
        connection.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


def _is_zero3(job: bytes) -> bool:
    return b"zero3" in job or b"ZeRO-3" in job


def _received(connection: Connection) -> Any:
    try:
        return pickle.loads(connection.recv_bytes())
    except EOFError:  # the test session is gone
        return None
